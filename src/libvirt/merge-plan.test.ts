import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { type DiskPlace, isMarkVoid, type MergeSituation, nextMergeStep } from './merge-plan.ts'

const overlay: DiskPlace = { at: 'overlay', onBase: true }
const base: DiskPlace = { at: 'base' }
const nowhere: DiskPlace = { at: 'nowhere' }

const running: MergeSituation = {
  active: true,
  live: overlay,
  defined: overlay,
  savedMemory: nowhere,
  overlay: 'held',
  committed: false,
  markedMerged: false,
}
const off: MergeSituation = { ...running, active: false, live: nowhere, overlay: 'used' }
const left: MergeSituation = { ...running, live: base, defined: base, overlay: 'used' }

const step = (seen: MergeSituation) => nextMergeStep(seen).step

describe('the merge of an overlay of a running VM', () => {
  it('commits, waits, pivots, deletes', () => {
    const job = (ready: boolean): DiskPlace => ({ at: 'overlay', onBase: true, job: { ours: true, ready } })
    assert.equal(step(running), 'start-commit')
    assert.equal(step({ ...running, live: job(false) }), 'await-commit')
    assert.equal(step({ ...running, live: job(true) }), 'pivot')
    assert.equal(step({ ...left, markedMerged: true }), 'delete-overlay')
    assert.equal(step({ ...left, overlay: 'missing' }), 'done')
  })

  it('is refused when the base is another one, when something lies on top, when another job copies the disk', () => {
    assert.equal(step({ ...running, live: { at: 'overlay', onBase: false } }), 'refuse')
    assert.equal(step({ ...running, live: { at: 'above' } }), 'refuse')
    assert.equal(
      step({ ...running, live: { at: 'overlay', onBase: true, job: { ours: false, ready: true } } }),
      'refuse',
    )
  })

  it('puts a definition right that still names the overlay, but only when nothing can be lost', () => {
    assert.equal(step({ ...left, defined: overlay, markedMerged: true }), 'repoint-definition')
    assert.equal(step({ ...left, defined: overlay, overlay: 'unused' }), 'repoint-definition')
    assert.equal(step({ ...left, defined: overlay }), 'refuse')
  })
})

describe('the merge of an overlay of a VM that is off', () => {
  it('commits, puts memory image and definition right in this order, deletes', () => {
    assert.equal(step(off), 'commit-offline')
    const committed = { ...off, committed: true, markedMerged: true }
    assert.equal(step({ ...committed, savedMemory: overlay }), 'repoint-memory')
    assert.equal(step({ ...committed, savedMemory: base }), 'repoint-definition')
    assert.equal(step({ ...committed, defined: base, savedMemory: base }), 'delete-overlay')
  })

  it('commits again after a crash, whatever an old mark says', () => {
    assert.equal(step({ ...off, markedMerged: true }), 'commit-offline')
    assert.ok(isMarkVoid({ ...off, markedMerged: true }))
    assert.ok(isMarkVoid({ ...running, markedMerged: true }))
    assert.ok(!isMarkVoid({ ...off, committed: true, markedMerged: true }))
    assert.ok(!isMarkVoid({ ...left, markedMerged: true }))
  })

  it('is refused when the overlay is gone, held or on another base', () => {
    assert.equal(step({ ...off, overlay: 'missing' }), 'refuse')
    assert.equal(step({ ...off, overlay: 'held' }), 'refuse')
    assert.equal(step({ ...off, defined: { at: 'overlay', onBase: false } }), 'refuse')
  })
})

describe('an overlay that no VM is on', () => {
  it('is deleted when it was never written to, or is marked as merged', () => {
    assert.equal(step({ ...left, overlay: 'unused' }), 'delete-overlay')
    assert.equal(step({ ...left, active: false, overlay: 'unused' }), 'delete-overlay')
    assert.equal(step({ ...left, markedMerged: true }), 'delete-overlay')
    assert.equal(step({ ...left, live: nowhere, defined: nowhere, overlay: 'unused' }), 'delete-overlay')
  })

  it('is kept when it may hold data, or when somebody has it open, mark or no mark', () => {
    assert.equal(step(left), 'refuse')
    for (const markedMerged of [false, true]) {
      assert.equal(step({ ...left, overlay: 'held', markedMerged }), 'refuse')
      assert.equal(step({ ...left, overlay: 'unreadable', markedMerged }), 'refuse')
      assert.equal(step({ ...left, live: { at: 'elsewhere', location: '/x' }, markedMerged }), 'refuse')
    }
  })
})

describe('every situation', () => {
  const job = (ours: boolean, ready: boolean): DiskPlace => ({ at: 'overlay', onBase: true, job: { ours, ready } })
  const places: DiskPlace[] = [
    overlay,
    { at: 'overlay', onBase: false },
    job(true, true),
    job(true, false),
    job(false, false),
    base,
    { at: 'above' },
    { at: 'elsewhere', location: '/x' },
    nowhere,
  ]

  it('deletes an overlay only when nobody is on it and nothing in it can be lost', () => {
    let seen = 0
    for (const active of [true, false])
      for (const live of places)
        for (const defined of places)
          for (const savedMemory of places)
            for (const use of ['missing', 'unused', 'used', 'held', 'unreadable'] as const)
              for (const committed of [true, false])
                for (const markedMerged of [true, false]) {
                  seen += 1
                  const now = { active, live, defined, savedMemory, overlay: use, committed, markedMerged }
                  if (nextMergeStep(now).step !== 'delete-overlay') continue
                  assert.ok(use === 'unused' || (use === 'used' && markedMerged))
                  for (const place of active ? [live, defined] : [defined, savedMemory])
                    assert.notEqual(place.at, 'overlay')
                  assert.notEqual((active ? live : defined).at, 'above')
                }
    assert.equal(seen, 2 * 9 ** 3 * 5 * 2 * 2)
  })
})
