/**
 * The NBD server against clients that are none: bytes that break the protocol, requests beyond all bounds, replies left
 * unread. After each of them a good client is served as before.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { numbers } from '../../test/sim/nbd-server.ts'
import type { BlockSource } from './block-device.ts'
import { connectNbd } from './nbd-client.ts'
import { type DiskServer, serveDisks } from './nbd-server.ts'

const mebibyte = 1024 * 1024
const content = randomBytes(2 * mebibyte)
const diskName = Buffer.from('disk')
const clientFlags = numbers([4, 3])

async function open(): Promise<{ readonly server: DiskServer } & AsyncDisposable> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
  const disk = new MemoryDisk(64 * mebibyte)
  disk.put(0, content)
  const server = await serveDisks([{ name: 'disk', source: disk.open() }], { socketPath: join(directory, 's') })
  return {
    server,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]()
      await rm(directory, { recursive: true, force: true })
    },
  }
}

const option = (type: number, data: Buffer = Buffer.alloc(0)) =>
  Buffer.concat([Buffer.from('IHAVEOPT'), numbers([4, type], [4, data.length]), data])
const go = option(7, Buffer.concat([numbers([4, diskName.length]), diskName, numbers([2, 0])]))
const structured = option(8)
const request = (command: number, offset: number, length: number, flags = 0) =>
  numbers([4, 0x25609513], [2, flags], [2, command], [8, 77], [8, offset], [4, length])
const disconnect = request(2, 0, 0)

/** Sends all of it and takes what comes back until the server closes; `leave`: says goodbye by ending the stream. */
async function exchange({ socketPath }: DiskServer, sent: Buffer, leave = false): Promise<Buffer> {
  const socket = net.connect(socketPath)
  const parts: Buffer[] = []
  socket.on('data', (bytes) => parts.push(bytes))
  socket.on('error', () => undefined) // the server may close while we still send
  if (leave) socket.end(sent)
  else socket.write(sent)
  await new Promise((resolve) => socket.on('close', resolve))
  return Buffer.concat(parts)
}

/** What comes after the negotiation; the option replies to GO are 20 + 12 and 20 bytes long. */
async function transmit(server: DiskServer, requests: readonly Buffer[], isStructured = true): Promise<Buffer> {
  const before = isStructured ? [structured] : []
  const reply = await exchange(server, Buffer.concat([clientFlags, ...before, go, ...requests, disconnect]))
  return reply.subarray(18 + (isStructured ? 20 : 0) + 52)
}

async function assertServes({ socketPath }: DiskServer): Promise<void> {
  await using device = await connectNbd({ socketPath, exportName: 'disk' })
  const bytes = Buffer.alloc(content.length)
  await device.read(0, bytes)
  assert.ok(bytes.equals(content))
}

const simpleError = (error: number) => numbers([4, 0x67446698], [4, error], [8, 77]).toString('hex')
const errorChunk = (error: number) =>
  numbers([4, 0x668e33ef], [2, 1], [2, 0x8001], [8, 77], [4, 6], [4, error], [2, 0]).toString('hex')

describe('an NBD server with a hostile client', () => {
  const beginnings: Record<string, Buffer> = {
    'that greets with other flags': numbers([4, 0xffffffff]),
    'that greets without fixed newstyle': numbers([4, 0]),
    'whose options have no magic': Buffer.concat([clientFlags, Buffer.alloc(64, 0x41)]),
    'that announces an option of 4 GiB': Buffer.concat([
      clientFlags,
      Buffer.from('IHAVEOPT'),
      numbers([4, 7], [4, 0xffffffff]),
    ]),
    'that asks for an unknown export by its name': Buffer.concat([clientFlags, option(1, Buffer.from('other'))]),
    'that sends options without end': Buffer.concat([clientFlags, ...Array.from({ length: 300 }, () => option(99))]),
    'whose request has no magic': Buffer.concat([clientFlags, go, Buffer.alloc(28, 0x41)]),
    'that writes more than any client may': Buffer.concat([clientFlags, go, request(1, 0, 0xffffffff)]),
  }
  for (const [name, bytes] of Object.entries(beginnings)) {
    it(`ends the connection of one ${name}`, async () => {
      await using opened = await open()
      await exchange(opened.server, bytes)
      await assertServes(opened.server)
    })
  }

  it('answers options it does not know UNSUP, and what is no option data INVALID', async () => {
    await using opened = await open()
    const tooLong = Buffer.concat([numbers([4, 100]), diskName, numbers([2, 0])])
    const manyQueries = Buffer.concat([numbers([4, 4]), diskName, numbers([4, 0xffffffff])])
    const options = [option(5), option(7, tooLong), option(8, diskName), option(8), option(10, manyQueries), option(2)]
    const replies = await exchange(opened.server, Buffer.concat([clientFlags, ...options]))
    const types = Array.from({ length: 6 }, (_, i) => replies.readUInt32BE(18 + 20 * i + 12).toString(16))
    assert.deepEqual(types, ['80000001', '80000003', '80000003', '1', '80000003', '1'])
  })

  it('refuses what is out of range, too long, not agreed upon or would write, and goes on', async () => {
    await using opened = await open()
    const refused: [Buffer, number][] = [
      [request(0, 64 * mebibyte - 1, 2), 22],
      [request(0, 2 ** 53, 512), 22],
      [request(0, 0, 32 * mebibyte + 1), 22],
      [request(0, 0, 512, 0xff00), 22],
      [request(7, 0, 512), 22],
      [request(99, 0, 0), 22],
      [Buffer.concat([request(1, 0, 100_000), randomBytes(100_000)]), 1],
      [request(4, 0, 512), 1],
      [request(6, 0, 512), 1],
    ]
    for (const [bytes, error] of refused) {
      const simple = await transmit(opened.server, [bytes], false)
      assert.equal(simple.toString('hex'), simpleError(error))
      const chunk = await transmit(opened.server, [bytes])
      assert.equal(chunk.toString('hex'), errorChunk(error))
    }
    const wide = Buffer.concat([
      numbers([4, 0x25609513], [2, 0], [2, 0], [8, 77]),
      Buffer.alloc(8, 0xff),
      numbers([4, 1]),
    ])
    assert.equal((await transmit(opened.server, [wide])).toString('hex'), errorChunk(22))
    await assertServes(opened.server)
  })

  it('answers requests that come all at once and are read late', async () => {
    await using opened = await open()
    const reads = Array.from({ length: 40 }, () => request(0, 0, 2 * mebibyte))
    const replies = await transmit(opened.server, reads, false)
    assert.equal(replies.length, 40 * (16 + 2 * mebibyte))
  })

  it('has at most 16 requests of a client under way', async () => {
    const requests = Array.from({ length: 100 }, () => request(0, 0, 4096))
    assert.equal(await mostAtOnce(requests, 16), 16)
  })

  it('serves others while one leaves its replies unread', async () => {
    await using opened = await open()
    const socket = net.connect(opened.server.socketPath)
    const reads = Array.from({ length: 1000 }, () => request(0, 0, 32 * mebibyte))
    socket.write(Buffer.concat([clientFlags, structured, go, ...reads]))
    await new Promise((resolve) => socket.once('readable', resolve)) // and not a byte more than node takes by itself
    await assertServes(opened.server)
    socket.destroy()
  })

  it('survives any bytes, at any point of the conversation', async () => {
    await using opened = await open()
    const good = Buffer.concat([clientFlags, structured, go, request(0, 0, 4096), request(3, 0, 0), disconnect])
    for (let round = 0; round < 150; round++) {
      const bytes = Buffer.from(good)
      const changes = 1 + (round % 4)
      for (let i = 0; i < changes; i++)
        bytes[Math.floor(Math.random() * bytes.length)] = Math.floor(Math.random() * 256)
      const cut = round % 3 === 0 ? Math.floor(Math.random() * bytes.length) : bytes.length
      const tail = round % 5 === 0 ? randomBytes(200) : Buffer.alloc(0)
      await exchange(opened.server, Buffer.concat([bytes.subarray(0, cut), tail]), true)
    }
    await assertServes(opened.server)
  })
})

/** How many reads of the source are under way at once at most, when none of them ends before `until` are. */
async function mostAtOnce(requests: readonly Buffer[], until: number): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
  const reached = Promise.withResolvers<void>()
  let [underWay, most] = [0, 0]
  const source: BlockSource = {
    sizeBytes: 64 * mebibyte,
    async read() {
      most = Math.max(most, ++underWay)
      if (underWay === until) reached.resolve()
      await reached.promise
      await new Promise((resolve) => setImmediate(resolve))
      underWay--
    },
    async *extents(offset, length) {
      yield { offset, length, data: true }
    },
    [Symbol.asyncDispose]: async () => undefined,
  }
  {
    await using server = await serveDisks([{ name: 'disk', source }], { socketPath: join(directory, 's') })
    await transmit(server, requests, false)
  }
  await rm(directory, { recursive: true })
  return most
}
