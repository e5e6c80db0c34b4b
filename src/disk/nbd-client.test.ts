/**
 * The NBD client against a small server in this process: the contract, and every way in which a server can go wrong.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { blockDeviceContract, blockSinkContract, failsAt } from '../../test/contract/block-device.contract.ts'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { chunk, type NbdServer, type NbdServerOptions, numbers, openNbdServer } from '../../test/sim/nbd-server.ts'
import { connectNbd, type NbdClientOptions, type NbdDevice } from './nbd-client.ts'
import { commandType } from './nbd-wire.ts'

const mebibyte = 1024 * 1024

interface Served {
  readonly device: NbdDevice
  readonly server: NbdServer
  readonly disk: MemoryDisk
}

/** A served disk and a client of it; disposal of the device takes the server down. */
async function openServed(
  disk: MemoryDisk,
  serverOptions: NbdServerOptions = {},
  clientOptions: Partial<NbdClientOptions> = {},
): Promise<Served & AsyncDisposable> {
  const server = await openNbdServer(disk, serverOptions)
  const device = await connectNbd({ socketPath: server.socketPath, exportName: 'disk', ...clientOptions })
  return {
    device,
    server,
    disk,
    async [Symbol.asyncDispose]() {
      await device[Symbol.asyncDispose]()
      await server[Symbol.asyncDispose]()
    },
  }
}

/** The device alone, for the contract. */
async function openDevice(
  disk: MemoryDisk,
  serverOptions?: NbdServerOptions,
  clientOptions?: Partial<NbdClientOptions>,
) {
  const { device, server } = await openServed(disk, serverOptions, clientOptions)
  const close = device[Symbol.asyncDispose].bind(device)
  device[Symbol.asyncDispose] = async () => {
    await close()
    await server[Symbol.asyncDispose]()
  }
  return device
}

const several = { canMultiConnect: true }
blockDeviceContract('NBD', (content) => openDevice(MemoryDisk.of(content)))
blockDeviceContract('NBD without structured replies', (content) =>
  openDevice(MemoryDisk.of(content), { structuredReplies: false }),
)
blockDeviceContract('NBD in small blocks', (content) => openDevice(MemoryDisk.of(content), { maximumBlockBytes: 4096 }))
blockDeviceContract('NBD over several connections', (content) =>
  openDevice(MemoryDisk.of(content), several, { connections: 3 }),
)
blockSinkContract('NBD', (size) => openDevice(new MemoryDisk(size)))
blockSinkContract('NBD over several connections', (size) =>
  openDevice(new MemoryDisk(size), several, { connections: 3 }),
)

describe('an NBD client', () => {
  it('opens one connection when the server does not promise that several see the same disk', async () => {
    await using one = await openServed(new MemoryDisk(mebibyte), {}, { connections: 4 })
    assert.equal(one.server.connections, 1)
    await using four = await openServed(new MemoryDisk(mebibyte), several, { connections: 4 })
    assert.equal(four.server.connections, 4)
  })

  it('asks for no more at once than the server takes', async () => {
    await using served = await openServed(new MemoryDisk(mebibyte), { maximumBlockBytes: 65_536 })
    await served.device.read(1, new Uint8Array(300_000))
    assert.ok(served.server.requests.every(({ length }) => length <= 65_536))
  })

  it('knows no empty ranges without structured replies', async () => {
    await using served = await openServed(new MemoryDisk(mebibyte), { structuredReplies: false })
    const extents = await Array.fromAsync(served.device.extents(10, 1000))
    assert.deepEqual(extents, [{ offset: 10, length: 1000, data: true }])
  })

  it('makes ranges zero without sending zeros', async () => {
    const disk = MemoryDisk.of(randomBytes(mebibyte))
    await using served = await openServed(disk)
    await served.device.writeZeroes(1000, 500_000)
    assert.equal(served.server.requests[0]?.command, commandType.writeZeroes)
    assert.ok(
      disk
        .content()
        .subarray(1000, 501_000)
        .every((byte) => byte === 0),
    )
  })

  it('does not write to a disk that is for reading only', async () => {
    await using served = await openServed(new MemoryDisk(mebibyte), { readOnly: true })
    assert.equal(served.device.readOnly, true)
    await assert.rejects(served.device.write(512, new Uint8Array(10)), failsAt('DISK_WRITE_FAILED', 512))
    await assert.rejects(served.device.flush(), failsAt('DISK_WRITE_FAILED', 0))
    assert.equal(served.server.requests.length, 0)
  })

  it('tells why the server could not read or write, and goes on working', async () => {
    for (const structuredReplies of [true, false]) {
      await using served = await openServed(new MemoryDisk(4 * mebibyte), {
        structuredReplies,
        behave: ({ offset }) => (offset === 2 * mebibyte ? { error: 28 } : 'answer'),
      })
      await assert.rejects(served.device.read(0, new Uint8Array(4 * mebibyte)), /offset 2097152: no space left/)
      await assert.rejects(
        served.device.write(mebibyte, new Uint8Array(2 * mebibyte)),
        failsAt('DISK_WRITE_FAILED', 2 * mebibyte),
      )
      await served.device.read(0, new Uint8Array(mebibyte))
    }
  })

  it('leaves the target alone once a read has failed', async () => {
    await using served = await openServed(new MemoryDisk(8 * mebibyte), {
      behave: ({ offset }) => (offset === 0 ? { error: 5 } : 'answer'),
    })
    const target = new Uint8Array(8 * mebibyte)
    await assert.rejects(served.device.read(0, target))
    target.fill(0x77)
    await served.device.read(mebibyte, new Uint8Array(mebibyte))
    assert.ok(target.every((byte) => byte === 0x77))
  })

  it('fails everything in flight when the connection is lost, and everything after that', {
    timeout: 5000,
  }, async () => {
    let requests = 0
    await using served = await openServed(new MemoryDisk(64 * mebibyte), {
      behave: () => (++requests === 16 ? 'hang-up' : 'silence'),
    })
    const reads = Array.from({ length: 40 }, (_, i) => served.device.read(i * 4096, new Uint8Array(3 * mebibyte)))
    const outcomes = await Promise.allSettled(reads)
    assert.ok(outcomes.every(({ status }) => status === 'rejected'))
    await assert.rejects(served.device.read(0, new Uint8Array(1)), failsAt('DISK_READ_FAILED', 0))
    await assert.rejects(served.device.write(0, new Uint8Array(1)), failsAt('DISK_WRITE_FAILED', 0))
  })

  it('gives up when nothing moves within the deadline', { timeout: 5000 }, async () => {
    await using served = await openServed(new MemoryDisk(mebibyte), { behave: () => 'silence' }, { deadlineMs: 50 })
    await assert.rejects(served.device.read(0, new Uint8Array(10)), { code: 'DEADLINE_EXCEEDED' })
  })

  it('waits as long as it takes while something moves', { timeout: 5000 }, async () => {
    const behave: NbdServerOptions['behave'] = ({ offset }) => (offset === 0 ? 'silence' : 'answer')
    await using served = await openServed(new MemoryDisk(mebibyte), { behave }, { deadlineMs: 150 })
    let hasFailed = false
    const slow = served.device.read(0, new Uint8Array(100)).catch(() => {
      hasFailed = true
    })
    for (let i = 0; i < 10; i++) {
      await setTimeout(40)
      await served.device.read(512, new Uint8Array(100))
    }
    assert.equal(hasFailed, false)
    await slow
    assert.equal(hasFailed, true)
  })

  it('gives up a server that does not greet', { timeout: 5000 }, async () => {
    await using server = await openNbdServer(new MemoryDisk(512), { greeting: Buffer.alloc(0) })
    const connecting = connectNbd({ socketPath: server.socketPath, exportName: 'd', deadlineMs: 50 })
    await assert.rejects(connecting, { code: 'DEADLINE_EXCEEDED' })
  })

  it('passes on the reason of its signal', { timeout: 5000 }, async () => {
    const stop = new AbortController()
    await using served = await openServed(new MemoryDisk(512), { behave: () => 'silence' }, { signal: stop.signal })
    const read = served.device.read(0, new Uint8Array(10))
    stop.abort()
    await assert.rejects(read, { name: 'AbortError' })
    await assert.rejects(served.device.read(0, new Uint8Array(10)), { name: 'AbortError' })
    const { socketPath } = served.server
    await assert.rejects(connectNbd({ socketPath, exportName: 'd', signal: stop.signal }), { name: 'AbortError' })
  })

  it('rejects reads under way when it is disposed', { timeout: 5000 }, async () => {
    await using served = await openServed(new MemoryDisk(512), { behave: () => 'silence' })
    const outcome = assert.rejects(served.device.read(0, new Uint8Array(10)), failsAt('DISK_READ_FAILED', 0))
    await served.device[Symbol.asyncDispose]()
    await outcome
  })

  it('says that there is no server', async () => {
    const connecting = connectNbd({ socketPath: '/nonexistent/socket', exportName: 'd' })
    await assert.rejects(connecting, { code: 'NBD_CONNECT_FAILED' })
  })

  it('believes no server that answers what was not asked', { timeout: 5000 }, async () => {
    const lies: ((cookie: Buffer) => Buffer)[] = [
      () => randomBytes(64).fill(0, 0, 1),
      () => chunk(0, Buffer.alloc(8, 0xff), Buffer.alloc(0)),
      (cookie) => chunk(0, cookie, Buffer.alloc(0)),
      (cookie) => chunk(1, cookie, Buffer.concat([numbers([8, 512]), Buffer.alloc(100)])),
      (cookie) => chunk(1, cookie, Buffer.concat([numbers([8, 0]), Buffer.alloc(99)])),
      (cookie) => chunk(1, cookie, Buffer.concat([Buffer.alloc(8, 0xff), Buffer.alloc(100)])),
      (cookie) => chunk(2, cookie, numbers([8, 0], [4, 0xffffffff])),
      (cookie) => chunk(5, cookie, numbers([4, 9], [4, 100], [4, 0])),
      (cookie) => chunk(77, cookie, Buffer.alloc(0)),
      (cookie) => chunk(0x8001, cookie, numbers([4, 0], [2, 0])),
      (cookie) => chunk(0x8001, cookie, numbers([4, 5], [2, 9])),
      (cookie) => Buffer.concat([numbers([4, 0x67446698], [4, 0]), cookie, Buffer.alloc(100)]),
    ]
    for (const lie of lies) {
      await using served = await openServed(new MemoryDisk(mebibyte), {
        behave: ({ cookie }) => ({ bytes: lie(cookie) }),
      })
      await assert.rejects(served.device.read(0, new Uint8Array(100)), { code: 'NBD_PROTOCOL' })
    }
  })
})

describe('a context that the client names', () => {
  const context = 'qemu:dirty-bitmap:b'
  const ranges = [
    { offset: 0, length: 1024 },
    { offset: 200 * 1024, length: 512 },
    { offset: 300 * 1024, length: 4096 },
  ]

  it('tells its marked ranges, ascending, however little the server tells at once', async () => {
    await using served = await openServed(new MemoryDisk(mebibyte), { marked: { context, ranges } }, { context })
    assert.deepEqual(await Array.fromAsync(served.device.marked(0, mebibyte)), ranges)
    const inside = { offset: 301 * 1024, length: 1024 }
    assert.deepEqual(await Array.fromAsync(served.device.marked(inside.offset, inside.length)), [inside])
    const holes = await Array.fromAsync(served.device.extents(0, mebibyte))
    assert.deepEqual(holes, [{ offset: 0, length: mebibyte, data: false }])
  })

  it('is missed at once, and without one nothing is marked', async () => {
    await using server = await openNbdServer(new MemoryDisk(mebibyte))
    const missing = connectNbd({ socketPath: server.socketPath, exportName: 'disk', context })
    await assert.rejects(missing, { code: 'NBD_EXPORT_REFUSED' })
    await using served = await openServed(new MemoryDisk(mebibyte))
    await assert.rejects(Array.fromAsync(served.device.marked(0, 512)), { code: 'DISK_READ_FAILED' })
  })
})
