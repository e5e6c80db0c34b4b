/**
 * A trace as aligned text: the events of a session and the calls of its providers in the order they happened, so that
 * a test reads like the tables of VSS's own pages.
 */
import assert from 'node:assert/strict'
import type { TraceEntry } from '../sim/recording.ts'

export function renderTrace(entries: readonly TraceEntry[]): string {
  const width = (pick: (entry: TraceEntry) => string) => Math.max(0, ...entries.map((entry) => pick(entry).length))
  const events = width(({ event }) => event)
  const who = width((entry) => entry.who)
  return entries
    .map((entry) => `${entry.event.padEnd(events)}  ${entry.who.padEnd(who)}  ${entry.about}`.trimEnd())
    .join('\n')
}

/** Compares with a template literal; its indentation and the width of its gaps do not count. */
export function assertTrace(entries: readonly TraceEntry[], expected: string): void {
  const lines = (text: string) =>
    text
      .split('\n')
      .map((line) => line.trim().replace(/ {2,}/g, '  '))
      .filter((line) => line !== '')
  assert.deepEqual(lines(renderTrace(entries)), lines(expected))
}
