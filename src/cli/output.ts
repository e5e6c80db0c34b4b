/**
 * Words and tables for people: sizes, durations, times, columns. Nothing here writes; screen.ts does.
 */
import { stripVTControlCharacters, styleText } from 'node:util'
import Table from 'cli-table3'

const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

/** 0 bytes, 812 bytes, 1.5 KiB, 64 MiB. */
export function bytesText(bytes: number | undefined): string {
  if (bytes === undefined) return 'unknown'
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  const digits = unit === 0 || value >= 100 || Number.isInteger(value) ? 0 : 1
  return `${value.toFixed(digits)} ${units[unit]}`
}

/** 0.4 ms, 12 ms, 4.2 s, 2 min 5 s, 3 h 10 min. */
export function durationText(ms: number | undefined): string {
  if (ms === undefined) return ''
  if (ms < 1000) return `${ms < 10 && !Number.isInteger(ms) ? ms.toFixed(1) : Math.round(ms)} ms`
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60]
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${seconds % 60} s`
}

/** 2026-11-22 01:02:03, in the zone of whoever reads it. */
export const timeText = (time: Date): string => time.toLocaleString('sv-SE')

/** 1 disk, 2 disks. */
export const countText = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`

/** One line of whatever came. */
export const oneLine = (text: string): string => text.trim().replace(/\s*\n\s*/g, ' ')

/**
 * What comes from outside (names in a repository, messages of a guest) may not steer the terminal: control characters
 * become question marks. Colours of our own stay.
 */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what this is about
  return text.replace(/\u001b\[[0-9;]*m|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, (found) =>
    found.length > 1 ? found : '?',
  )
}

export const good = (text: string): string => styleText('green', text)
export const doubtful = (text: string): string => styleText('yellow', text)
export const bad = (text: string): string => styleText('red', text)

export interface Column {
  readonly head: string
  readonly align?: 'left' | 'right'
}

/** Plain columns without lines. When it would be wider than `width` the last column is wrapped at words. */
export function tableText(columns: readonly Column[], rows: readonly (readonly string[])[], width?: number): string {
  const table = new Table({
    head: columns.map(({ head }) => styleText('bold', head)),
    colAligns: columns.map(({ align = 'left' }) => align),
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2 },
    chars: Object.fromEntries(frameless.map((part) => [part, ''])),
    ...widthOfLast(columns, rows, width),
  })
  table.push(...rows.map((row) => [...row]))
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
}

const frameless = [
  ...['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left', 'bottom-right'],
  ...['left', 'left-mid', 'mid', 'mid-mid', 'right', 'right-mid', 'middle'],
]

const narrowestLast = 20

function widthOfLast(columns: readonly Column[], rows: readonly (readonly string[])[], width: number | undefined) {
  if (width === undefined) return {}
  const widthOf = (index: number) =>
    Math.max(...[columns[index]?.head ?? '', ...rows.map((row) => row[index] ?? '')].flatMap(linesOf)) + 2
  const widths = columns.map((_, index) => widthOf(index))
  const others = widths.slice(0, -1).reduce((sum, one) => sum + one, 0)
  const last = Math.min(widths.at(-1) ?? 0, Math.max(narrowestLast, width - others))
  return { colWidths: [...widths.slice(0, -1), last], wordWrap: true }
}

const linesOf = (cell: string): number[] =>
  stripVTControlCharacters(cell)
    .split('\n')
    .map((line) => [...line].length)
