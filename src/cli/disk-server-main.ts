/**
 * The process that serves the disks of one instant restore out of the repository (src/requester/instant-server.ts). Its
 * only argument is the file for its number. Its order and the key come through its standard input; it answers one line,
 * `ready` or what went wrong, and then serves until it is asked to end. It only reads.
 */
import { open, rm } from 'node:fs/promises'
import { describeError } from '../base/failure.ts'
import { serveDisks } from '../disk/nbd-server.ts'
import { openRepository, type Unlock } from '../repository/repository.ts'
import { noteFailure } from '../requester/instant-failures.ts'
import { findRecord, type InstantRecord, placesOf, readRecord } from '../requester/instant-record.ts'
import { serverOrder } from '../requester/instant-server.ts'
import { type OpenDisks, openDisksIn, PatientDisks } from '../requester/patient-disks.ts'

const longestOrder = 64 * 1024

process.umask(0o077)
const end = new AbortController()
for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => end.abort())
process.on('SIGHUP', () => undefined) // the terminal it was started from is none of its business

const [pidFile = ''] = process.argv.slice(2)
try {
  const order = await readOrder()
  if (order !== undefined) await serve(serverOrder.parse(order))
} catch (error) {
  if (!end.signal.aborted) await answer(describeError(error).replaceAll('\n', ' '))
}
process.exit()

/** Undefined when whoever started this has gone without a word. */
async function readOrder(): Promise<unknown> {
  let text = ''
  for await (const bytes of process.stdin) {
    text += String(bytes)
    if (text.length > longestOrder) throw new Error('the order is too long')
  }
  return text === '' ? undefined : JSON.parse(text)
}

async function serve({ stateDirectory, name, key }: ReturnType<typeof serverOrder.parse>): Promise<void> {
  const record = await readRecord(stateDirectory, name)
  const { serverSocketPath, serverPidFile, failures } = placesOf(stateDirectory, record)
  if (pidFile !== serverPidFile) throw new Error(`it was started for ${pidFile}, not for ${serverPidFile}`)
  const { signal } = end
  const openAnew = () => openDisks(record, unlockBy(key))
  await using disks = new PatientDisks(await openAnew(), { open: openAnew, signal })
  const served = record.disks.map(({ target }) => ({ name: target, source: disks.source(target) }))
  await using _server = await serveDisks(served, {
    socketPath: serverSocketPath,
    onFailure: ({ name: disk, offset, length, error }) =>
      void noteFailure(failures, { disk, offset, length, reason: describeError(error) }).catch(() => undefined),
  })
  await writeOwnNumber()
  // Whoever ended this instant restore meanwhile could not find this process: it looks for the number before and after.
  if ((await findRecord(stateDirectory, name))?.token !== record.token) end.abort()
  await answer('ready')
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
  await rm(pidFile, { force: true })
}

function unlockBy({ keyFile, passphrase }: ReturnType<typeof serverOrder.parse>['key']): Unlock {
  if (keyFile !== undefined) return { keyFile }
  return passphrase === undefined ? {} : { passphrase: async () => passphrase }
}

function openDisks({ repository, point, component, disks }: InstantRecord, unlock: Unlock): Promise<OpenDisks> {
  const wanted = disks.map(({ target, stream, sizeBytes }) => {
    return { name: target, stream: `${component}/${stream}`, sizeBytes }
  })
  return openDisksIn(openRepository(repository, { unlock }), point, wanted)
}

async function writeOwnNumber(): Promise<void> {
  await using file = await open(pidFile, 'w', 0o600)
  await file.writeFile(`${process.pid}\n`)
}

async function answer(text: string): Promise<void> {
  process.stdout.on('error', () => undefined)
  await new Promise<void>((resolve) => process.stdout.write(`${text}\n`, () => resolve()))
}
