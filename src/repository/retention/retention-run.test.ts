/**
 * Retention against a repository: what is read of the points, and that deletions go on and are told one by one.
 */
import assert from 'node:assert/strict'
import { appendFile, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import type { JsonObject } from '../../base/cleanup.ts'
import { failure } from '../../errors.ts'
import { createRepository, type Repository } from '../repository.ts'
import { planRetention, type RetentionDecision } from './retention.ts'
import { readRetentionPoints, removePoints } from './retention-run.ts'

async function openPlace() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-retention-'))
  const repository = await createRepository(folder, { chunkSizeBytes: 64 * 1024, encryption: 'none' })
  return {
    folder,
    repository,
    async [Symbol.asyncDispose]() {
      await repository[Symbol.asyncDispose]()
      await rm(folder, { recursive: true })
    },
  }
}

async function addPoint(repository: Repository, content: JsonObject): Promise<string> {
  await using draft = await repository.beginPoint()
  return (await draft.commit(content)).id
}

const web01 = { name: 'web01', uuid: '1' }

test('a point is read with its VMs, its time and its pin', async () => {
  await using place = await openPlace()
  const id = await addPoint(place.repository, { vms: [web01, { name: 'ledger' }] })
  await place.repository.pin(id, 'audit')
  const [point] = await readRetentionPoints(place.repository)
  assert.ok(point !== undefined)
  assert.deepEqual(point.vms, [web01, { name: 'ledger', uuid: 'ledger' }])
  assert.equal(point.pinned, 'audit')
  const [listed] = await place.repository.listPoints()
  assert.equal(point.createdAtMs, listed?.createdAt.getTime())
})

test('what can not be read is there too, with its time and its pin, and says why', async () => {
  await using place = await openPlace()
  const id = await addPoint(place.repository, { vms: [web01] })
  await place.repository.pin(id, 'audit')
  await appendFile(path.join(place.folder, 'points', `${id}.json`), 'rust')
  const [point] = await readRetentionPoints(place.repository)
  assert.equal(point?.unreadable, 'its digest does not match')
  assert.equal(point?.pinned, 'audit')
  const second = `${id.slice(0, 4)}-${id.slice(4, 6)}-${id.slice(6, 8)}`
  assert.equal(new Date(point?.createdAtMs ?? 0).toISOString().slice(0, 10), second)
})

test('a point whose VMs can not be told is never given up', async () => {
  await using place = await openPlace()
  const odd: JsonObject[] = [{}, { vms: 'web01' }, { vms: [{ name: 1 }] }, { vms: [web01, { uuid: '2' }] }, { vms: [] }]
  for (const content of odd) await addPoint(place.repository, content)
  const points = await readRetentionPoints(place.repository)
  const decisions = planRetention(points, { rules: [{ vms: ['*'], keepLast: 0 }], allowNone: true }, Date.now() + 1000)
  assert.equal(decisions.length, odd.length)
  assert.ok(decisions.every(({ keep }) => keep))
})

const decision = (id: string, keep = false): RetentionDecision => ({
  point: { id, createdAtMs: 0, vms: [] },
  keep,
  reasons: ['because'],
})

test('deletions are one by one, and go on after a failure', async () => {
  const asked: string[] = []
  const repository = {
    async deletePoint(id: string) {
      asked.push(id)
      if (id === 'b') throw failure('REPOSITORY_IO', { path: '/backup', reason: 'EIO' })
      if (id === 'c') throw failure('RECOVERY_POINT_PINNED', { point: id, note: 'audit' })
    },
  }
  const decisions = [decision('a'), decision('k', true), decision('b'), decision('c'), decision('d')]
  const outcomes = await removePoints(repository, decisions, new AbortController().signal)
  assert.deepEqual(asked, ['a', 'b', 'c', 'd'])
  assert.deepEqual(
    outcomes.map(({ became }) => became),
    ['removed', 'kept', 'failed', 'pinned meanwhile', 'removed'],
  )
  assert.equal(outcomes[2]?.failure?.code, 'REPOSITORY_IO')
})

test('after an abort nothing more is deleted', async () => {
  const stop = new AbortController()
  const repository = { deletePoint: async () => stop.abort() }
  const outcomes = await removePoints(repository, [decision('a'), decision('b')], stop.signal)
  assert.deepEqual(
    outcomes.map(({ became }) => became),
    ['removed', 'not reached'],
  )
})
