/**
 * The contracts of writers and providers, passed by those of the tests: a host application's files.
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../src/base/clock.ts'
import { providerContract } from '../contract/provider.contract.ts'
import { writerContract } from '../contract/writer.contract.ts'
import { FileApplication, FileProvider, FileWriter, fileUndoHandlers } from '../sim/file-writer.ts'

async function ledger() {
  const base = await mkdtemp(join(tmpdir(), 'umbra-contract-'))
  const directory = join(base, 'ledger')
  await mkdir(directory)
  const application = new FileApplication(directory)
  await application.write('accounts', 'balance 10')
  await application.write('journal', 'entry 1')
  return { application, [Symbol.asyncDispose]: () => rm(base, { recursive: true }) }
}

writerContract('the file writer', async () => {
  const { application, [Symbol.asyncDispose]: dispose } = await ledger()
  return {
    writer: new FileWriter(application),
    undoHandlers: fileUndoHandlers,
    state: () => application.state(),
    [Symbol.asyncDispose]: dispose,
  }
})

providerContract('the file provider', async () => {
  const { application, [Symbol.asyncDispose]: dispose } = await ledger()
  const { components } = await new FileWriter(application).onIdentify()
  const provider = new FileProvider(systemClock)
  const read = async (path: unknown) => new Uint8Array(await readFile(String(path)))
  return {
    provider,
    volumes: components.flatMap(({ volumes }) => volumes),
    undoHandlers: fileUndoHandlers,
    change: async (volume) => writeFile(String(volume.properties.path), `changed ${crypto.randomUUID()}`),
    content: (volume) => read(volume.properties.path),
    residue: async () => provider.residue,
    [Symbol.asyncDispose]: dispose,
  }
})
