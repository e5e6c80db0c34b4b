/**
 * Reading packs in windows: in order in few requests, elsewhere as without, and always what the store has.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { ManualClock } from '../../../test/sim/manual-clock.ts'
import { Failure } from '../../base/failure.ts'
import { inSlot, openSlots } from '../../base/slots.ts'
import { failure } from '../../errors.ts'
import { packSizeBytes } from '../format.ts'
import type { Backend } from '../storage/backend.ts'
import { AlignedBuffers } from './aligned-buffers.ts'
import { PackWindows, windowBytes } from './pack-windows.ts'

const pack = 'packs/a'
const targets = new AlignedBuffers(600_000, 0)

/** A store with one pack, that counts what it is asked. */
function openStore(content: Buffer) {
  const store = {
    content: content as Buffer | undefined,
    requests: [] as { readonly offset: number; readonly bytes: number }[],
    clock: new ManualClock(),
    failsAt: (_offset: number) => false,
    async read(key: string, offset: number, target: Uint8Array) {
      store.requests.push({ offset, bytes: target.length })
      await new Promise(setImmediate)
      if (store.content === undefined) throw failure('REPOSITORY_OBJECT_MISSING', { path: key })
      if (store.failsAt(offset)) throw failure('REPOSITORY_IO', { path: key, reason: 'the network is away' })
      return store.content.subarray(offset).copy(target)
    },
  }
  const windows = new PackWindows(store, store.clock)
  return { store, windows }
}

interface Scene {
  readonly store: Pick<Backend, 'read'>
  readonly windows: PackWindows
}

/** Reads a piece as ChunkStore does, out of a window or alone, and compares it with what stands there. */
async function readPiece({ store, windows }: Scene, content: Buffer, offset: number, bytes: number, key = pack) {
  const buffer = targets.take()
  const target = buffer.subarray(0, bytes)
  try {
    using lent = await windows.lend(key, offset, target)
    const found = lent?.bytes ?? target.subarray(0, await store.read(key, offset, target))
    await new Promise(setImmediate)
    assert.ok(found.equals(content.subarray(offset, offset + bytes)), `${bytes} bytes at ${offset}`)
  } finally {
    targets.give(buffer)
  }
}

/** All up to `end` in pieces of uneven size, `atOnce` of them under way. */
async function readInOrder(scene: Scene, content: Buffer, atOnce: number, end = content.length) {
  const slots = openSlots(atOnce)
  const pieces: Promise<void>[] = []
  for (let at = 0, bytes = 0; at < end; at += bytes) {
    bytes = 200_000 + ((at * 7) % 300_000)
    const [offset, length] = [at, bytes]
    pieces.push(inSlot(slots, () => readPiece(scene, content, offset, length)))
  }
  await Promise.all(pieces)
}

for (const atOnce of [1, 8]) {
  for (const bytes of [packSizeBytes, packSizeBytes - 100, 2 * windowBytes, windowBytes + 1, 700_000]) {
    test(`a pack of ${bytes} bytes read in order, ${atOnce} at once, takes a request for each window, and a few`, async () => {
      const content = randomBytes(bytes)
      const scene = openStore(content)
      const { store } = scene
      await readInOrder(scene, content, atOnce)
      const most = Math.ceil(bytes / windowBytes) + 3
      assert.ok(store.requests.length <= most, JSON.stringify(store.requests))
    })
  }
}

/** Reads `packs` packs in turn, as a point's chunks lie after many backups; answers how many bytes were read for each that was wanted. */
async function readInTurn(packs: number): Promise<number> {
  const contents = new Map(Array.from({ length: packs }, (_, number) => [`packs/${number}`, randomBytes(3_000_000)]))
  let read = 0
  const store = {
    async read(key: string, offset: number, target: Uint8Array) {
      await new Promise(setImmediate)
      const bytes = contents.get(key)?.subarray(offset).copy(target) ?? 0
      read += bytes
      return bytes
    },
  }
  const scene = { store, windows: new PackWindows(store) }
  for (let at = 0; at < 3_000_000; at += 100_000) {
    await Promise.all([...contents].map(([key, content]) => readPiece(scene, content, at, 100_000, key)))
  }
  return read / (packs * 3_000_000)
}

test('several packs in turn each give what is theirs; when they are too many, little is read in vain', async () => {
  for (const packs of [2, 12, 30, 80]) {
    const ratio = await readInTurn(packs)
    assert.ok(ratio < 2, `${packs} packs: ${ratio} times what was wanted`)
  }
})

test('reads here and there are requests of their own, no longer than they are', async () => {
  const content = randomBytes(packSizeBytes)
  const scene = openStore(content)
  const { store } = scene
  for (const megabytes of [9, 1, 13, 5, 15, 3, 11, 7]) await readPiece(scene, content, megabytes * 1_000_000, 100_000)
  assert.equal(store.requests.length, 8)
  assert.ok(store.requests.every(({ bytes }) => bytes === 100_000))
})

test('a window that can not be had fails nobody who needs none of it; who does reads alone, and is told why', async () => {
  const content = randomBytes(packSizeBytes)
  const scene = openStore(content)
  const { store } = scene
  const badByte = 2 * windowBytes + 500_000
  store.failsAt = (offset) => offset >= 2 * windowBytes && offset <= badByte
  await readInOrder(scene, content, 1, 2 * windowBytes - 600_000)
  const isTold = (error: unknown) => error instanceof Failure && error.code === 'REPOSITORY_IO'
  await assert.rejects(readPiece(scene, content, badByte, 100_000), isTold)
  await readPiece(scene, content, badByte + 100_000, 100_000)
  const ofBad = store.requests.filter(({ offset, bytes }) => offset === 2 * windowBytes && bytes === windowBytes)
  assert.equal(ofBad.length, 1, 'the window is not asked for again')
})

test('what was deleted or has changed is read no longer: after a while, or when windows are forgotten', async () => {
  const content = randomBytes(3_000_000)
  const scene = openStore(content)
  const { store, windows } = scene
  const isGone = (error: unknown) => error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING'
  for (const wait of [() => store.clock.advance(60_000), () => windows.forget()]) {
    store.content = content
    await readInOrder(scene, content, 1)
    store.content = undefined
    await wait()
    await assert.rejects(readPiece(scene, content, 500_000, 100_000), isGone)
  }
})

test('a window that is lent keeps its bytes, whatever is forgotten and read meanwhile', async () => {
  const content = randomBytes(packSizeBytes)
  const scene = openStore(content)
  await readInOrder(scene, content, 1, 600_000)
  using lent = (await scene.windows.lend(pack, 600_000, targets.take().subarray(0, 100_000))) ?? assert.fail()
  scene.windows.forget()
  scene.store.content = randomBytes(packSizeBytes)
  await readInOrder(scene, scene.store.content, 4)
  assert.ok(lent.bytes.equals(content.subarray(600_000, 700_000)))
})
