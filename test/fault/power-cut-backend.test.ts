/**
 * What a directory of objects promises at a power cut beyond the object that is put: what one process saw of another's work and
 * relied upon does not come undone.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Backend } from '../../src/repository/storage/backend.ts'
import { openLocalBackend } from '../../src/repository/storage/local-backend.ts'
import { UnsyncedFiles } from './unsynced-files.ts'
import { nothingUnsynced } from './unsynced-files-tree.ts'

const point = '20261122T010203Z-abcd'
const manifest = `points/${point}.json`
const pack = `packs/${point}/${'a'.repeat(64)}`
const index = `indexes/${point}/${'b'.repeat(64)}`
const marker = `drafts/${point}.json`
const content = [Buffer.from('content')]

async function keysOf(backend: Backend, prefix = ''): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of backend.list(prefix)) keys.push(key)
  return keys.sort()
}

const keysAfterPowerCut = (files: UnsyncedFiles) => keysOf(openLocalBackend('/r', files.afterPowerCut(nothingUnsynced)))

/** A disk with `keys`, and one that runs `work` up to its operation `call`, which is done, and is killed. */
async function killedAt(call: RegExp, keys: readonly string[], work: (backend: Backend) => Promise<unknown>) {
  for (let at = 1; ; at += 1) {
    const files = new UnsyncedFiles()
    await files.makeFolder('/r')
    await files.syncFolder('/')
    const whole = openLocalBackend('/r', files)
    for (const key of keys) await whole.put(key, content)
    const dying = files.nextProcess({ at, fault: 'killed' })
    await work(openLocalBackend('/r', dying)).catch(() => undefined)
    assert.ok(dying.hit, `no ${call}`)
    if (call.test(dying.operations.at(-1)?.call ?? '')) return files.nextProcess()
  }
}

test('a pack is not removed before the deletion of its point, seen in the list, is durable', async () => {
  const files = await killedAt(/^unlink/, [manifest, pack], (backend) => backend.delete(manifest))
  const backend = openLocalBackend('/r', files)
  assert.deepEqual(await keysOf(backend, 'points/'), [])
  assert.deepEqual(await keysAfterPowerCut(files), [pack, manifest])
  await backend.delete(pack)
  assert.deepEqual(await keysAfterPowerCut(files), [])
})

test('a manifest does not become durable before the indexes that were read of others', async () => {
  const files = await killedAt(/^link .*indexes/, [marker], (backend) => backend.put(index, content))
  const backend = openLocalBackend('/r', files)
  assert.deepEqual(await keysAfterPowerCut(files), [marker])
  await backend.get(index, 1000)
  await backend.put('points/20261122T010204Z-abcd.json', content)
  assert.deepEqual(await keysAfterPowerCut(files), [marker, index, 'points/20261122T010204Z-abcd.json'])
})

test('an index is durable when the marker of its draft is gone', async () => {
  const files = await killedAt(/^link .*indexes/, [marker], (backend) => backend.put(index, content))
  await openLocalBackend('/r', files).delete(marker)
  assert.deepEqual(await keysAfterPowerCut(files), [index])
})

test('a put is durable in folders that others, killed since, made and did not sync', async () => {
  const files = await killedAt(/^mkdir .*points/, [], (backend) => backend.put(manifest, content))
  await openLocalBackend('/r', files).put(manifest, content)
  assert.deepEqual(await keysAfterPowerCut(files), [manifest])
})

test('an object whose name could not be synced is taken back, unless it is an index that others may have read', async () => {
  for (const [key, left] of [
    [manifest, []],
    [index, [index]],
  ] as const) {
    const folder = key.slice(0, key.lastIndexOf('/'))
    for (let at = 1; ; at += 1) {
      const files = new UnsyncedFiles({ at, fault: 'EIO' })
      const backend = openLocalBackend('/', files)
      const outcome = await backend.put(key, content).catch((error: unknown) => error)
      assert.ok(files.hit, 'no sync of the folder')
      if (files.operations[at - 1]?.call !== `fsync of folder /${folder}`) continue
      assert.ok(outcome instanceof Error && 'code' in outcome && outcome.code === 'REPOSITORY_IO')
      assert.deepEqual(await keysOf(openLocalBackend('/', files)), left)
      break
    }
  }
})

test('a file that can not be looked at fails a list, and is not left out of it', async () => {
  const files = new UnsyncedFiles()
  await openLocalBackend('/', files).put('a/1', content)
  for (let at = 1; at <= 3; at += 1) {
    await assert.rejects(keysOf(openLocalBackend('/', files.nextProcess({ at, fault: 'EIO' }))), {
      code: 'REPOSITORY_IO',
    })
  }
})
