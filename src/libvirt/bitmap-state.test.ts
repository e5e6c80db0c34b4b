/**
 * The state of change tracking: what is believed, what is not, and what is said about it.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { ChangeTracking, ImageMark, TrackableDisk, TrackedDisk } from '../vm/backup-job.ts'
import { decide, isOwnedBy, ownerTag, pointNameOf, surplusPoints } from './bitmap-state.ts'

const owner = '0f1e2d3c-4b5a-4678-8796-a5b4c3d2e1f0'
const image: ImageMark = { location: '/images/a.qcow2', sizeBytes: 1000, file: '12-34' }
const recording: TrackedDisk = { target: 'sda', bitmap: 'recording', changedBytes: 5, image }
const present: TrackableDisk = { target: 'sda', image, internalStates: 0 }

function tracking(
  points: Readonly<Record<string, TrackedDisk>>,
  disk: Partial<TrackableDisk> = {},
  forgotten: readonly string[] = [],
): ChangeTracking {
  const all = Object.entries(points).map(([name, tracked], i) => ({ name, createdMs: i * 1000, disks: [tracked] }))
  return { points: all, disks: [{ ...present, ...disk }], forgotten }
}

const one = pointNameOf(owner, 'one')
const two = pointNameOf(owner, 'two')

describe('names of tracking points', () => {
  test('tell whose they are by eight hexadecimal digits', () => {
    assert.equal(one, 'umbra-0f1e2d3c-one')
    assert.ok(isOwnedBy(owner, one))
    assert.ok(!isOwnedBy('aaaaaaaa-0000-4000-8000-000000000000', one))
    for (const foreign of ['one', 'umbra-one', 'umbra-0f1e2d3c-', 'nightly', 'umbra-0f1e2d3c-a/b'])
      assert.ok(!isOwnedBy(owner, foreign), foreign)
    assert.match(ownerTag('an owner of another kind'), /^[0-9a-f]{8}$/)
  })
})

describe('what can be built upon', () => {
  test('the newest stamp of which there is a point', () => {
    const both = tracking({ [one]: recording, [two]: { ...recording, changedBytes: 3 } })
    const decision = decide(both, 'sda', owner, ['gone', 'two', 'one'])
    assert.deepEqual(decision, { state: 'recording', stamp: 'two', point: two, changedBytes: 3 })
  })

  const doubts: readonly (readonly [string, string, TrackedDisk, Partial<TrackableDisk>, RegExp])[] = [
    ['a broken bitmap', 'lost', { ...recording, bitmap: 'broken' }, {}, /killed/],
    ['a VM that does not run', 'in-doubt', { ...recording, bitmap: 'unknown' }, {}, /running VM/],
    ['another image', 'in-doubt', recording, { image: { ...image, location: '/b' } }, /was \/images\/a.qcow2 then/],
    ['another size', 'in-doubt', recording, { image: { ...image, sizeBytes: 2000 } }, /from 1000 to 2000/],
    ['another file in its place', 'in-doubt', recording, { image: { ...image, file: '13-99' } }, /replaced/],
    ['an image of which nothing was noted', 'in-doubt', { target: 'sda', bitmap: 'recording' }, {}, /not known/],
    ['internal snapshots', 'in-doubt', recording, { internalStates: 1 }, /internal snapshots/],
    ['a raw disk', 'none', recording, { untrackable: 'raw disks have no bitmaps' }, /raw disks/],
  ]
  for (const [what, state, tracked, disk, reason] of doubts) {
    test(`not ${what}: ${state}`, () => {
      const decision = decide(tracking({ [one]: tracked }, disk), 'sda', owner, ['one'])
      assert.equal(decision.state, state)
      assert.match(decision.state === 'recording' ? '' : decision.reason, reason)
    })
  }

  test('nothing, when there is no earlier backup, no point of it, or only one of another owner', () => {
    const foreign = tracking({ 'umbra-aaaaaaaa-one': recording })
    assert.equal(decide(tracking({ [one]: recording }), 'sda', owner, []).state, 'none')
    assert.equal(decide(foreign, 'sda', owner, ['one']).state, 'lost')
    assert.equal(decide(tracking({}), 'sdz', owner, ['one']).state, 'none')
  })

  test('an older point is no way round a doubtful newer one', () => {
    const both = tracking({ [one]: recording, [two]: { ...recording, bitmap: 'broken' } })
    assert.equal(decide(both, 'sda', owner, ['two', 'one']).state, 'lost')
  })

  test('whatever is believed has a whole bitmap on the very image, unchanged in size', () => {
    const mark = fc.record({
      location: fc.constantFrom('/a', '/b'),
      sizeBytes: fc.constantFrom(1, 2),
      file: fc.constantFrom('x', 'y'),
    })
    const bitmap = fc.constantFrom('recording', 'broken', 'unknown')
    fc.assert(
      fc.property(mark, mark, bitmap, fc.nat({ max: 1 }), (then, now, state, internalStates) => {
        const found = tracking(
          { [one]: { target: 'sda', bitmap: state as 'recording', image: then } },
          { image: now, internalStates },
        )
        const believed = decide(found, 'sda', owner, ['one']).state === 'recording'
        const same = then.location === now.location && then.sizeBytes === now.sizeBytes && then.file === now.file
        assert.equal(believed, state === 'recording' && same && internalStates === 0)
      }),
    )
  })
})

describe('points that nobody needs', () => {
  test('are those of this owner that are not built upon, and bitmaps of forgotten ones', () => {
    const lost = pointNameOf(owner, 'lost')
    const all = { [one]: recording, [two]: recording, nightly: recording, 'umbra-aaaaaaaa-x': recording }
    const found = tracking(all, {}, [lost, 'umbra-aaaaaaaa-y'])
    assert.deepEqual(surplusPoints(found, owner, new Set([one]), new Set(['one'])), [two, lost])
    assert.deepEqual(surplusPoints(found, owner, new Set(), new Set(['one'])), [one, two, lost])
  })

  test('but the newest stays when the backup was told to build on nothing: the chain is whole until it succeeds', () => {
    const found = tracking({ [one]: recording, [two]: recording })
    assert.deepEqual(surplusPoints(found, owner, new Set(), new Set()), [one])
  })
})
