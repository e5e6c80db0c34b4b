/**
 * Rates as typed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseRate } from './rate.ts'

test('bytes in tens and in twos, and bits', () => {
  const rates: [string, number][] = [
    ['50MB', 50_000_000],
    ['50 MB/s', 50_000_000],
    ['50MiB', 52_428_800],
    ['1.5GiB', 1_610_612_736],
    ['200mbit', 25_000_000],
    ['1Gbit', 125_000_000],
    ['800kB', 800_000],
    ['65536B', 65_536],
  ]
  for (const [text, bytesPerSecond] of rates) assert.deepEqual(parseRate(text), { ok: true, bytesPerSecond }, text)
})

test('what is no rate is refused with the way to write it', () => {
  const refusals: [string, RegExp][] = [
    ['', /^It must be a number and a unit, as in 50MB/],
    ['fast', /^It must be a number and a unit/],
    ['-5MB', /^It must be a number and a unit/],
    ['5e9B', /^It must be a number and a unit/],
    ['50', /^It needs a unit: 50MB, 50MiB or 50mbit/],
    ['50mb', /^It may mean bytes or bits: write 50MB or 50mbit\.$/],
    ['50Mbps', /^It may mean bytes or bits: write 50MB or 50mbit\.$/],
    ['50Mib', /^There is no unit Mib: there are kB/],
    ['50constructor', /^There is no unit constructor/],
    ['1kB', /^It must be at least 64KiB/],
    ['0MB', /^It must be at least 64KiB/],
    ['9000GB', /^It must be at most 1000GB/],
  ]
  for (const [text, message] of refusals) {
    const parsed = parseRate(text)
    assert.ok(!parsed.ok, text)
    assert.match(parsed.reason, message)
  }
})
