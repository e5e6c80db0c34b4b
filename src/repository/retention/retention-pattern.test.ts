/**
 * Patterns of names.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { matchesPattern } from './retention-pattern.ts'

test('a star is any characters, a question mark is one, all else is itself', () => {
  const matches: [string, string][] = [
    ['web01', 'web01'],
    ['web01', '*'],
    ['web01', 'web*'],
    ['web01', '*01'],
    ['web01', 'w*b*1'],
    ['web01', 'web??'],
    ['', '*'],
    ['a.b', 'a.b'],
    ['[x]', '[x]'],
    ['abcabd', '*abd'],
  ]
  for (const [name, pattern] of matches) assert.ok(matchesPattern(name, pattern), `${name} ${pattern}`)
  const others: [string, string][] = [
    ['web01', 'web'],
    ['web01', 'eb01'],
    ['web01', 'web???'],
    ['web01', 'WEB01'],
    ['axb', 'a.b'],
    ['web01', ''],
    ['web01', 'web01?'],
  ]
  for (const [name, pattern] of others) assert.ok(!matchesPattern(name, pattern), `${name} ${pattern}`)
})

test('it answers as a regular expression would', () => {
  const letters = fc.string({ unit: fc.constantFrom('a', 'b', '*', '?', '.'), maxLength: 8 })
  fc.assert(
    fc.property(letters, letters, (name, pattern) => {
      const source = [...pattern].map((one) => (one === '*' ? '.*' : one === '?' ? '.' : RegExp.escape(one))).join('')
      assert.equal(matchesPattern(name, pattern), new RegExp(`^${source}$`, 's').test(name))
    }),
    { numRuns: 2000 },
  )
})

test('a hostile name takes no longer than name × pattern', () => {
  assert.equal(matchesPattern('a'.repeat(50_000), `${'*a'.repeat(50)}*b`), false)
})
