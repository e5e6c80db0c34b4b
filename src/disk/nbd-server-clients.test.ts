/**
 * The NBD server with the clients it is for: QEMU's and libnbd's own programs.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { promisify } from 'node:util'
import { sampleContent } from '../../test/contract/block-device.contract.ts'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { serveDisks } from './nbd-server.ts'

const run = promisify(execFile)
const isInstalled = async (program: string) =>
  run(program, ['--version']).then(
    () => true,
    () => false,
  )
const skip = async (program: string) => ((await isInstalled(program)) ? false : `${program} is not installed`)

const withoutNbdcopy = await skip('nbdcopy')

/** Two served disks, of which `sample` is the contract's sample; also as a file. */
async function serveSample() {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
  const content = sampleContent()
  const file = join(directory, 'sample.raw')
  await writeFile(file, content)
  const disks = [
    { name: 'sample', source: MemoryDisk.of(content).open() },
    { name: 'empty', source: new MemoryDisk(2 ** 36).open() },
  ]
  const server = await serveDisks(disks, { socketPath: join(directory, 's') })
  return {
    server,
    directory,
    file,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]()
      await rm(directory, { recursive: true, force: true })
    },
  }
}

describe('an NBD server with QEMU', { skip: await skip('qemu-img') }, () => {
  it('is compared, copied and mapped', async () => {
    await using served = await serveSample()
    const { directory, file, server } = served
    const uri = server.uri('sample')
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', file, uri])
    const copy = join(directory, 'copy.qcow2')
    await run('qemu-img', ['convert', '-m', '8', '-W', '-f', 'raw', '-O', 'qcow2', uri, copy])
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', file, copy])
    const { stdout } = await run('qemu-img', ['map', '--output=json', '-f', 'raw', uri])
    const holes = (JSON.parse(stdout) as { zero: boolean; data: boolean }[]).filter((part) => part.zero && !part.data)
    assert.equal(holes.length, 3)
  })

  it('maps a disk of 64 GiB of nothing', async () => {
    await using served = await serveSample()
    const { stdout } = await run('qemu-img', ['map', '--output=json', '-f', 'raw', served.server.uri('empty')])
    const parts = JSON.parse(stdout) as { length: number; data: boolean }[]
    assert.deepEqual(
      parts.map(({ length, data }) => ({ length, data })),
      [{ length: 2 ** 36, data: false }],
    )
  })

  it('can not be written to', async () => {
    await using served = await serveSample()
    const { file, server } = served
    await assert.rejects(run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', file, server.uri('sample')]))
  })
})

describe('an NBD server with libnbd', { skip: await skip('nbdinfo') }, () => {
  it('is listed, described and mapped', async () => {
    await using served = await serveSample()
    const { server } = served
    const list = JSON.parse(
      (await run('nbdinfo', ['--json', '--list', `nbd+unix://?socket=${server.socketPath}`])).stdout,
    )
    const names = (list.exports as { 'export-name': string }[]).map((each) => each['export-name'])
    assert.deepEqual(names, ['sample', 'empty'])
    const { stdout } = await run('nbdinfo', ['--json', server.uri('sample')])
    const [described] = JSON.parse(stdout).exports
    assert.equal(described['export-size'], sampleContent().length)
    assert.equal(described.is_read_only, true)
    assert.equal(described.can_multi_conn, true)
    assert.equal(described.can_df, true)
    assert.equal(described.block_size_maximum, 32 * 1024 * 1024)
    assert.deepEqual(described.contexts, ['base:allocation'])
    const { stdout: map } = await run('nbdinfo', ['--map', '--json', server.uri('sample')])
    const kinds = (JSON.parse(map) as { type: number }[]).map(({ type }) => type)
    assert.deepEqual(kinds, [0, 3, 0, 3, 0, 3, 0])
  })

  it('is copied by nbdcopy', { skip: withoutNbdcopy }, async () => {
    await using served = await serveSample()
    const copy = join(served.directory, 'copy.raw')
    await run('nbdcopy', [served.server.uri('sample'), copy])
    await run('cmp', [copy, served.file])
  })
})
