/**
 * The NBD server in front of disks in memory: with our own client, with QEMU's and libnbd's, and with bytes that no client
 * would send.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { blockDeviceContract, failsAt, sampleContent } from '../../test/contract/block-device.contract.ts'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { failure } from '../errors.ts'
import type { BlockSource } from './block-device.ts'
import { connectNbd, type NbdClientOptions, type NbdDevice } from './nbd-client.ts'
import { type DiskServer, type DiskServerOptions, type ServedFailure, serveDisks } from './nbd-server.ts'

const mebibyte = 1024 * 1024

/** A directory of a test's own. */
async function openDirectory(): Promise<{ readonly path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

/** Serves the sources by their names; disposal removes the directory of the socket as well. */
async function serve(
  sources: Readonly<Record<string, BlockSource>>,
  options: Partial<DiskServerOptions> = {},
): Promise<DiskServer> {
  const directory = await openDirectory()
  const disks = Object.entries(sources).map(([name, source]) => ({ name, source }))
  const server = await serveDisks(disks, { socketPath: join(directory.path, 's'), ...options })
  return {
    socketPath: server.socketPath,
    uri: server.uri,
    get connections() {
      return server.connections
    },
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]()
      await directory[Symbol.asyncDispose]()
    },
  }
}

async function openDevice(content: Uint8Array, options: Partial<NbdClientOptions> = {}): Promise<NbdDevice> {
  const server = await serve({ disk: MemoryDisk.of(content).open() })
  const device = await connectNbd({ socketPath: server.socketPath, exportName: 'disk', ...options })
  const close = device[Symbol.asyncDispose].bind(device)
  device[Symbol.asyncDispose] = async () => {
    await close()
    await server[Symbol.asyncDispose]()
  }
  return device
}

blockDeviceContract('our NBD server', (content) => openDevice(content))
blockDeviceContract('our NBD server over several connections', (content) => openDevice(content, { connections: 3 }))

const connect = ({ socketPath }: DiskServer, exportName = 'disk') => connectNbd({ socketPath, exportName })

describe('an NBD server', () => {
  it('serves each disk under its name, and refuses other names', async () => {
    const [one, two] = [randomBytes(4096), randomBytes(8192)]
    await using server = await serve({ one: MemoryDisk.of(one).open(), 'web/vda ö': MemoryDisk.of(two).open() })
    await using device = await connect(server, 'web/vda ö')
    assert.equal(device.sizeBytes, 8192)
    const bytes = Buffer.alloc(8192)
    await device.read(0, bytes)
    assert.deepEqual(bytes, two)
    await assert.rejects(connect(server, 'three'), { code: 'NBD_EXPORT_REFUSED' })
    assert.equal(
      server.uri('web/vda ö'),
      `nbd+unix:///web%2Fvda%20%C3%B6?socket=${encodeURIComponent(server.socketPath)}`,
    )
  })

  it('is private to its owner, unless told', async () => {
    await using directory = await openDirectory()
    const socketPath = join(directory.path, 'new', 's')
    await using server = await serve({ disk: MemoryDisk.of(randomBytes(512)).open() }, { socketPath })
    assert.equal((await stat(join(directory.path, 'new'))).mode & 0o777, 0o700)
    assert.equal((await stat(server.socketPath)).mode & 0o777, 0o600)
    await using open = await serve({}, { mode: 0o660 })
    assert.equal((await stat(open.socketPath)).mode & 0o777, 0o660)
  })

  it('takes the place of a server that died, and of nothing else', async () => {
    await using directory = await openDirectory()
    const socketPath = join(directory.path, 's')
    const refusal = { code: 'NBD_LISTEN_FAILED' }
    {
      await using _ = await serveDisks([], { socketPath })
      await assert.rejects(serveDisks([], { socketPath }), refusal)
    }
    await assert.rejects(stat(socketPath), { code: 'ENOENT' })
    const dying = net.createServer()
    const dyingPath = join(directory.path, 'd')
    await new Promise<void>((resolve) => dying.listen(dyingPath, resolve))
    await rename(dyingPath, socketPath) // so that its end leaves it behind
    await new Promise((resolve) => dying.close(resolve))
    {
      await using _ = await serveDisks([], { socketPath })
    }
    await symlink('elsewhere', socketPath)
    await assert.rejects(serveDisks([], { socketPath }), refusal)
    await rm(socketPath)
    await writeFile(socketPath, 'mine')
    await assert.rejects(serveDisks([], { socketPath }), refusal)
    assert.equal(await readFile(socketPath, 'utf8'), 'mine')
    await assert.rejects(serveDisks([], { socketPath: `/tmp/${'x'.repeat(110)}` }), refusal)
  })

  it('answers EIO where a read fails, tells of it, and reads on', async () => {
    const told: ServedFailure[] = []
    const content = randomBytes(4 * mebibyte)
    const disk = MemoryDisk.of(content)
    disk.faults.push({ operation: 'read', offset: 2 * mebibyte })
    await using server = await serve({ disk: disk.open() }, { onFailure: (failed) => told.push(failed) })
    await using device = await connect(server)
    const bytes = Buffer.alloc(mebibyte)
    await assert.rejects(device.read(2 * mebibyte, bytes), failsAt('DISK_READ_FAILED', 2 * mebibyte))
    assert.deepEqual(
      told.map(({ name, offset, length }) => ({ name, offset, length })),
      [{ name: 'disk', offset: 2 * mebibyte, length: mebibyte }],
    )
    await device.read(3 * mebibyte, bytes)
    assert.deepEqual(bytes, content.subarray(3 * mebibyte))
  })

  it('ends its clients when it is disposed, with reads under way and with one that only its source can end', async () => {
    const source = MemoryDisk.of(randomBytes(8 * mebibyte)).open()
    const server = await serve({ disk: source })
    const devices = await Promise.all(Array.from({ length: 4 }, () => connect(server)))
    const reads = devices.flatMap((device) =>
      Array.from({ length: 20 }, () => device.read(0, Buffer.alloc(4 * mebibyte))),
    )
    const settled = Promise.allSettled(reads)
    await Promise.race(reads)
    await server[Symbol.asyncDispose]()
    assert.ok((await settled).some(({ status }) => status === 'rejected'))
    for (const device of devices) await device[Symbol.asyncDispose]()

    const [waiting, end] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const patient: BlockSource = {
      sizeBytes: 512,
      read: async () => {
        waiting.resolve()
        await end.promise
        throw failure('REPOSITORY_IO', { path: 'it', reason: 'gone' })
      },
      async *extents(offset, length) {
        yield { offset, length, data: true }
      },
      [Symbol.asyncDispose]: async () => undefined,
    }
    const failures: ServedFailure[] = []
    const other = await serve({ disk: patient }, { onFailure: (one) => void failures.push(one) })
    await using device = await connect(other)
    const read = assert.rejects(device.read(0, Buffer.alloc(512)), { code: 'DISK_READ_FAILED' })
    await waiting.promise
    const disposed = other[Symbol.asyncDispose]()
    await read
    end.resolve()
    await disposed
    assert.deepEqual(failures, [], 'nobody asked any more')
  })

  it('answers several clients at once, each with its own bytes', async () => {
    const content = sampleContent()
    await using server = await serve({ disk: MemoryDisk.of(content).open() })
    const readAll = async () => {
      await using device = await connect(server)
      const bytes = Buffer.alloc(content.length)
      await device.read(0, bytes)
      assert.ok(bytes.equals(content))
    }
    await Promise.all(Array.from({ length: 12 }, readAll))
  })
})
