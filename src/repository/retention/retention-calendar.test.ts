/**
 * The calendar: ISO weeks, leap years, and the days on which clocks are changed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { openCalendar } from './retention-calendar.ts'

const utc = openCalendar('UTC')
const berlin = openCalendar('Europe/Berlin')
const at = (time: string) => Date.parse(time)

test('an instant has an hour, a day, a week, a month and a year', () => {
  assert.deepEqual(utc(at('2026-11-22T14:59:59.999Z')), {
    hourly: '2026-11-22 14:00+00:00',
    daily: '2026-11-22',
    weekly: '2026-W47',
    monthly: '2026-11',
    yearly: '2026',
  })
  assert.equal(utc(at('2026-11-22T00:00:00Z')).hourly, '2026-11-22 00:00+00:00', 'midnight is hour 0 of the new day')
})

test('weeks are those of ISO 8601, over the turn of years too', () => {
  const weeks: [string, string][] = [
    ['2020-12-31', '2020-W53'],
    ['2021-01-03', '2020-W53'],
    ['2021-01-04', '2021-W01'],
    ['2018-12-31', '2019-W01'],
    ['2016-01-03', '2015-W53'],
    ['2026-12-31', '2026-W53'],
    ['2027-01-03', '2026-W53'],
    ['2024-02-29', '2024-W09'],
    ['2022-01-01', '2021-W52'],
    ['2000-01-01', '1999-W52'],
  ]
  for (const [day, week] of weeks) assert.equal(utc(at(`${day}T12:00:00Z`)).weekly, week, day)
})

test('leap days are days of their own', () => {
  assert.equal(utc(at('2028-02-29T23:59:59Z')).daily, '2028-02-29')
  assert.equal(utc(at('2028-02-29T23:59:59Z')).monthly, '2028-02')
  assert.equal(utc(at('2028-03-01T00:00:00Z')).daily, '2028-03-01')
})

test('the zone decides which day, week and year it is', () => {
  const newYear = at('2026-12-31T23:30:00Z')
  assert.equal(utc(newYear).yearly, '2026')
  assert.deepEqual([berlin(newYear).yearly, berlin(newYear).daily], ['2027', '2027-01-01'])
  assert.equal(openCalendar('Pacific/Kiritimati')(at('2026-11-22T10:00:00Z')).daily, '2026-11-23')
  assert.equal(openCalendar('Asia/Kathmandu')(at('2026-11-22T18:14:00Z')).hourly, '2026-11-22 23:00+05:45')
})

test('when summer time ends the hour that comes twice is two, and the day of 25 hours is one', () => {
  const first = berlin(at('2026-10-25T00:30:00Z'))
  const second = berlin(at('2026-10-25T01:30:00Z'))
  assert.equal(first.hourly, '2026-10-25 02:00+02:00')
  assert.equal(second.hourly, '2026-10-25 02:00+01:00')
  assert.equal(berlin(at('2026-10-24T22:00:00Z')).daily, '2026-10-25')
  assert.equal(berlin(at('2026-10-25T22:59:59Z')).daily, '2026-10-25')
  assert.equal(berlin(at('2026-10-25T23:00:00Z')).daily, '2026-10-26')
})

test('when summer time begins the day of 23 hours is one', () => {
  assert.equal(berlin(at('2026-03-29T00:30:00Z')).hourly, '2026-03-29 01:00+01:00')
  assert.equal(berlin(at('2026-03-29T01:00:00Z')).hourly, '2026-03-29 03:00+02:00')
  assert.equal(berlin(at('2026-03-28T23:00:00Z')).daily, '2026-03-29')
  assert.equal(berlin(at('2026-03-29T21:59:59Z')).daily, '2026-03-29')
  assert.equal(berlin(at('2026-03-29T22:00:00Z')).daily, '2026-03-30')
})

test('a week has seven days in a row, the first of them a Monday', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 40_000 }), (dayNumber) => {
      const time = dayNumber * 86_400_000
      const { weekly } = utc(time)
      const fromMonday = (new Date(time).getUTCDay() + 6) % 7
      for (let day = -fromMonday; day < 7 - fromMonday; day++) {
        assert.equal(utc(time + day * 86_400_000).weekly, weekly)
      }
      assert.notEqual(utc(time + (7 - fromMonday) * 86_400_000).weekly, weekly)
    }),
    { numRuns: 200 },
  )
})
