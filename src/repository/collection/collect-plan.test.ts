/** The plan of a collection, from facts alone. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type PackFacts, planCollection } from './collect-plan.ts'

const policy = { repackBelow: 0.5, maxRepackBytes: 1000, allFound: true }

const pack = (facts: Partial<PackFacts> = {}): PackFacts => ({
  ...{ key: 'packs/p/1', sizeBytes: 100, neededBytes: 0, standing: 'indexed', owner: 'over', condemned: 'no' },
  ...facts,
})

/** What becomes of one pack. */
function fateOf(facts: Partial<PackFacts>, changed: Partial<typeof policy> = {}): string {
  const { kept, ...plan } = planCollection([pack(facts)], { ...policy, ...changed })
  const [reason] = kept.keys()
  return reason ?? Object.entries(plan).find(([, packs]) => packs.length > 0)?.[0] ?? 'nothing'
}

test('what nobody needs is condemned, what is needed stays, what is mostly garbage is repacked', () => {
  assert.equal(fateOf({}), 'condemn')
  assert.equal(fateOf({ neededBytes: 50 }), 'needed')
  assert.equal(fateOf({ neededBytes: 49 }), 'repack')
  assert.equal(fateOf({ neededBytes: 49 }, { repackBelow: 0 }), 'needed')
})

test('of a draft that is open nothing is touched', () => {
  fc.assert(
    fc.property(facts, (some) => {
      assert.equal(fateOf({ ...some, owner: 'open' }), 'draft')
    }),
  )
})

test('what is condemned waits until it is due, and is pardoned when it is needed by then', () => {
  assert.equal(fateOf({ condemned: 'waiting' }), 'waiting')
  assert.equal(fateOf({ condemned: 'due' }), 'sweep')
  assert.equal(fateOf({ condemned: 'due', neededBytes: 1 }), 'pardon')
})

test('what no index names goes only when everything that is needed was found', () => {
  assert.equal(fateOf({ standing: 'unindexed' }), 'condemn')
  assert.equal(fateOf({ standing: 'unindexed', condemned: 'due' }), 'sweep')
  assert.equal(fateOf({ standing: 'unindexed' }, { allFound: false }), 'unsure')
  assert.equal(fateOf({ standing: 'unindexed', condemned: 'due' }, { allFound: false }), 'unsure')
})

test('what a dead draft left goes at once unless others may know of it', () => {
  assert.equal(fateOf({ standing: 'unindexed', owner: 'dead' }), 'discard')
  assert.equal(fateOf({ standing: 'unindexed', owner: 'dead, published' }), 'condemn')
  assert.equal(fateOf({ owner: 'dead, published' }), 'condemn')
})

test('a pack that is missing leaves the indexes only when nobody needs it', () => {
  assert.equal(fateOf({ standing: 'lost', sizeBytes: 0 }), 'condemn')
  assert.equal(fateOf({ standing: 'lost', sizeBytes: 0, neededBytes: 1 }), 'lost')
  assert.equal(fateOf({ standing: 'lost', sizeBytes: 0, neededBytes: 1, condemned: 'due' }), 'lost')
})

test('one run copies no more than it may, the least needed packs first', () => {
  const packs = [40, 10, 30, 20].map((neededBytes) => pack({ key: `packs/p/${neededBytes}`, neededBytes }))
  const plan = planCollection(packs, { ...policy, maxRepackBytes: 35 })
  assert.deepEqual(
    plan.repack.map(({ neededBytes }) => neededBytes),
    [10, 20],
  )
  assert.deepEqual(plan.kept.get('limit'), { packs: 2, bytes: 200 })
})

const facts: fc.Arbitrary<PackFacts> = fc.record({
  key: fc.constant('packs/p/1'),
  sizeBytes: fc.integer({ min: 1, max: 200 }),
  neededBytes: fc.integer({ min: 0, max: 200 }),
  standing: fc.constantFrom('indexed', 'unindexed', 'lost'),
  owner: fc.constantFrom('over', 'open', 'dead', 'dead, published'),
  condemned: fc.constantFrom('no', 'waiting', 'due'),
})

test('no needed pack is ever removed, and every pack has one fate', () => {
  fc.assert(
    fc.property(fc.array(facts, { maxLength: 20 }), fc.boolean(), (packs, allFound) => {
      const { kept, ...plan } = planCollection(packs, { ...policy, allFound })
      const removed = [...plan.sweep, ...plan.condemn].filter(({ standing }) => standing !== 'unindexed')
      assert.ok(removed.every(({ neededBytes }) => neededBytes === 0))
      const counts = [...Object.values(plan).map((some) => some.length), ...[...kept.values()].map((sum) => sum.packs)]
      assert.equal(
        counts.reduce((sum, count) => sum + count, 0),
        packs.length,
      )
    }),
  )
})
