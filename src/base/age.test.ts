/**
 * Ages as typed, and as told.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ageText, parseAge } from './age.ts'

const hourMs = 3_600_000

test('hours, days and weeks are understood', () => {
  assert.equal(parseAge('36h'), 36 * hourMs)
  assert.equal(parseAge('14d'), 14 * 24 * hourMs)
  assert.equal(parseAge(' 2 w '), 14 * 24 * hourMs)
})

test('what is no age, or none that can be meant, is not', () => {
  for (const text of ['', '14', 'd', '0d', '-1d', '1.5d', '14D', '3m', '1y', '1d2h', '9999999d', '99999999h', '1e3d']) {
    assert.equal(parseAge(text), undefined, text)
  }
})

test('an age is told in the unit that comes out even', () => {
  assert.equal(ageText(14 * 24 * hourMs), '14 days')
  assert.equal(ageText(24 * hourMs), '1 day')
  assert.equal(ageText(36 * hourMs), '36 hours')
  assert.equal(ageText(hourMs), '1 hour')
})
