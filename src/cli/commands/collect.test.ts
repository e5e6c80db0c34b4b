/** What umbra collect says. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { stripVTControlCharacters } from 'node:util'
import type { CollectReport } from '../../repository/repository.ts'
import { collectText } from './collect.ts'

const none = { packs: 0, bytes: 0 }

const quiet: CollectReport = {
  ...{ dryRun: false, points: 2, total: { packs: 5, bytes: 5 * 1024 * 1024 } },
  ...{ discarded: { ...none, drafts: [] }, swept: none, pardoned: none, condemned: none, repacked: none },
  ...{ mergedIndexes: 0, waiting: [], openDrafts: [], kept: [], missing: { records: 0, ids: [] }, damaged: [] },
}

const said = (report: Partial<CollectReport>, delayMs = 86_400_000) =>
  stripVTControlCharacters(collectText({ ...quiet, ...report }, delayMs))
    .split('\n')
    .slice(1)

test('a run that has nothing to do says so', () => {
  assert.equal(collectText(quiet, 0), '2 recovery points; 5 packs, 5 MiB: there is nothing to collect')
})

test('what was done is told with figures, and a dry run tells it as a wish', () => {
  const report = {
    swept: { packs: 1, bytes: 1024 },
    repacked: { packs: 2, bytes: 512 },
    condemned: { packs: 3, bytes: 4096 },
  }
  assert.deepEqual(said(report), [
    'removed: 1 pack, 1 KiB',
    'copied 512 bytes out of 2 packs that are mostly garbage',
    'marked: 3 packs, 4 KiB',
  ])
  assert.ok(said({ ...report, dryRun: true }).every((line) => line.startsWith('would ')))
})

test('what waits is told with its backup, and until when', () => {
  const waiting = [{ packs: 1, bytes: 10, until: '2026-11-23T00:00:00.000Z', drafts: ['20261122T010203Z-ab2c'] }]
  assert.deepEqual(said({ waiting }, 0), ['waits for the backup 20261122T010203Z-ab2c to end: 1 pack, 10 bytes'])
  assert.match(
    said({ waiting })[0] ?? '',
    /^waits until 2026-11-2\d .* and for the backup 20261122T010203Z-ab2c to end/,
  )
})
