/**
 * Options that take a rate, and the limits they become. A limit is for the whole run, shared by all of its disks.
 */
import { InvalidArgumentError, Option } from 'commander'
import { systemClock } from '../base/clock.ts'
import { parseRate } from '../base/rate.ts'
import { openRateLimit, type RateLimit } from '../base/rate-limit.ts'

export interface RateOptions {
  /** Bytes per second. */
  readonly limitRead?: number
  /** Bytes per second. */
  readonly limitWrite?: number
}

export const rateOption = (name: '--limit-read' | '--limit-write', what: string): Option =>
  new Option(`${name} <rate>`, `${what} no faster than this: 50MB, 50MiB or 200mbit a second`).argParser(rate)

function rate(text: string): number {
  const parsed = parseRate(text)
  if (!parsed.ok) throw new InvalidArgumentError(parsed.reason)
  return parsed.bytesPerSecond
}

export const limitOf = (bytesPerSecond: number | undefined): RateLimit | undefined =>
  bytesPerSecond === undefined ? undefined : openRateLimit(bytesPerSecond, systemClock)
