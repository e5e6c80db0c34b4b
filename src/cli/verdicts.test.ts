/**
 * Verdicts as people read them: the newest on each VM, in a line.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Check } from '../repository/repository.ts'
import { newestChecks, verdictText } from './verdicts.ts'

const verdict = (id: string, name: string, passed: boolean, reason: string): Check => ({
  id,
  checkedAt: '2026-11-22T01:02:03.000Z',
  vm: { name, uuid: `uuid-of-${name}` },
  passed,
  reason,
  evidence: {},
  hasScreen: false,
})

test('of several on one VM the newest counts', () => {
  const all = [verdict('1', 'web', false, 'silent'), verdict('2', 'db', true, 'up'), verdict('3', 'web', true, 'up')]
  assert.deepEqual(
    newestChecks(all).map(({ id }) => id),
    ['2', '3'],
  )
})

test('one line: whose, whether, and when or why not', () => {
  assert.equal(verdictText(verdict('1', 'web', true, 'up'), false), 'boots: yes, 2026-11-22')
  const silent = verdict('1', 'web', false, 'agent silent\n after 120 s')
  assert.equal(verdictText(silent, true), 'web boots: NO: agent silent after 120 s')
  assert.ok(verdictText(verdict('1', 'web', false, 'x'.repeat(5000)), true).length < 250)
})
