/**
 * Words for people: sizes, durations, tables, the progress line, events, and what hostile text may do to a terminal.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { stripVTControlCharacters } from 'node:util'
import { failure } from '../errors.ts'
import { bytesText, countText, durationText, oneLine, printable, tableText } from './output.ts'
import { progressText } from './progress-line.ts'
import { eventLine, openTimeline } from './timeline.ts'
import { tellFailure } from './told-failure.ts'

describe('words', () => {
  it('for sizes', () => {
    const sizes = [0, 812, 1024, 1536, 64 * 1024 ** 2, 100.4 * 1024 ** 3, 3 * 1024 ** 5, undefined]
    assert.deepEqual(sizes.map(bytesText), [
      ...['0 bytes', '812 bytes', '1 KiB', '1.5 KiB', '64 MiB', '100 GiB', '3 PiB', 'unknown'],
    ])
  })

  it('for durations and counts', () => {
    const durations = [0, 0.42, 12.6, 4210, 125_400, 3 * 3_600_000 + 600_000]
    assert.deepEqual(durations.map(durationText), ['0 ms', '0.4 ms', '13 ms', '4.2 s', '2 min 5 s', '3 h 10 min'])
    assert.equal(`${countText(1, 'disk')}, ${countText(2, 'disk')}`, '1 disk, 2 disks')
  })

  it('that are one line, and do not steer the terminal', () => {
    assert.equal(oneLine('first\n  second\n'), 'first second')
    assert.equal(printable('a\u001b]0;title\u0007b\u009bc\r\nd\t'), 'a?]0;title?b?c?\nd\t')
    assert.equal(printable('\u001b[31mred\u001b[39m'), '\u001b[31mred\u001b[39m')
  })
})

describe('tables', () => {
  const columns = [{ head: 'VM' }, { head: 'SIZE', align: 'right' as const }, { head: 'NOTES' }]
  const rows = [
    ['web01', '1 MiB', 'short'],
    ['db', '64 MiB', 'a remark that is longer than the rest of a narrow terminal'],
  ]
  const plain = (width?: number) => stripVTControlCharacters(tableText(columns, rows, width)).split('\n')

  it('stand in columns', () => {
    assert.deepEqual(plain().slice(0, 2), ['VM       SIZE  NOTES', 'web01   1 MiB  short'])
  })

  it('wrap the last column at words', () => {
    const lines = plain(50)
    assert.ok(
      lines.every((line) => line.length <= 50),
      lines.join('\n'),
    )
    assert.equal(lines.at(-1)?.trim(), 'rest of a narrow terminal')
  })
})

describe('the progress line', () => {
  it('says how far, how fast, how long, and fits', () => {
    const progress = {
      what: 'web01 sda',
      doneBytes: 12 * 1024 ** 3,
      totalBytes: 36 * 1024 ** 3,
      bytesPerSecond: 1024 ** 2,
    }
    const text = progressText({ ...progress, etaSeconds: 111.2 }, 100)
    assert.equal(text, 'web01 sda  33 %  12 GiB of 36 GiB  1 MiB/s  1 min 52 s left')
    assert.equal(progressText({ ...progress, etaSeconds: undefined }, 20).length, 19)
    assert.match(progressText({ ...progress, totalBytes: 0, doneBytes: 0, etaSeconds: undefined }, 80), / 100 % /)
  })
})

describe('the timeline', () => {
  const identify = { atMs: 0, event: 'Identify', writer: 'Umbra VM Writer' }
  it('tells when, what, to whom', () => {
    const line = eventLine({ atMs: 1204, event: 'Freeze', writer: 'Umbra VM Writer', vm: 'web01', detail: 'done' })
    assert.equal(line, '   1.204 s  Freeze                web01  done')
  })

  it('keeps silent about a request that is refused at once', () => {
    const said: string[] = []
    const tell = openTimeline((line) => said.push(line))
    tell(identify)
    assert.deepEqual(said, [])
    tell({ ...identify, event: 'PrepareForBackup' })
    assert.equal(said.length, 2)
  })
})

describe('a failure', () => {
  it('has the exit code of the catalogue, and what is left beside it', () => {
    const first = failure('USAGE', { reason: 'so\nnot' })
    assert.deepEqual(tellFailure(first, false), {
      told: { code: 'USAGE', message: 'so not', hint: 'See umbra --help.', context: { reason: 'so\nnot' } },
      exitCode: 2,
    })
    const both = new SuppressedError(failure('CLEANUP_INCOMPLETE', { steps: ['thaw-guest'] }), first)
    assert.deepEqual(tellFailure(both, false).told.cleanup, ['done, but this is left: thaw-guest'])
    assert.equal(tellFailure(failure('CLEANUP_INCOMPLETE', { steps: [] }), false).exitCode, 3)
  })

  it('is 130 once the user has asked to stop', () => {
    assert.equal(tellFailure(new DOMException('stop', 'AbortError'), true).exitCode, 130)
    assert.equal(tellFailure(failure('HOST_IO', { reason: 'x' }), true).exitCode, 130)
  })

  it('of the operating system is no bug; a bug has its trace', () => {
    const refused = Object.assign(new Error('EACCES: permission denied'), { syscall: 'open' })
    assert.equal(tellFailure(refused, false).told.code, 'HOST_IO')
    const bug = tellFailure(new Error('bug: twice'), false)
    assert.equal(bug.told.code, 'BUG')
    assert.match(bug.trace ?? '', /output\.test\.ts/)
  })
})
