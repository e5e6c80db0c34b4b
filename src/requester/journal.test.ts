/**
 * The undo journal: what stands on disk before a deed, what a torn one still says, and who may replay it when (laws 1, 2,
 * 4, 7).
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import type { UndoHandlers, UndoRecord } from '../base/cleanup.ts'
import { ownProcessMark, processMarkText } from '../base/process-mark.ts'
import { tryLock } from './host-lock.ts'
import { describeRecord, Journal, readJournal, recoverInterrupted, recoverJournal } from './journal.ts'

const directory = await mkdtemp(join(tmpdir(), 'umbra-journal-'))
after(() => rm(directory, { recursive: true }))

let sessions = 0
const ownMark = processMarkText(await ownProcessMark())
const header = (process = ownMark) => ({
  session: `session-${++sessions}`,
  what: 'backup' as const,
  startedAt: '2026-01-01T00:00:00.000Z',
  uri: 'sim:///system',
  process,
})

/** An empty directory, and handlers that note what they undo. */
async function sandbox(handlers: UndoHandlers = {}) {
  const place = await mkdtemp(join(directory, 'case-'))
  const undone: string[] = []
  const note = async (record: UndoRecord) => void undone.push(describeRecord(record))
  const clock = new ManualClock()
  const options = { handlersFor: async () => ({ a: note, b: note, c: note, ...handlers }), clock }
  return { place, undone, clock, options }
}

const text = async (journal: Journal) => readFile(journal.path, 'utf8')
/** A mark of a process that has ended. */
const nobody = ownMark.replace(/\d+-\d+$/, '999999999-1')

async function left(place: string, lines: readonly string[], process = nobody): Promise<string> {
  const content = header(process)
  const path = join(place, `${content.session}.jsonl`)
  await writeFile(path, [JSON.stringify({ header: content }), ...lines].join('\n'))
  return path
}

const add = (id: number, undo: string) => JSON.stringify({ add: id, record: { undo } })
const done = (id: number) => JSON.stringify({ done: id })

describe('a journal under way', () => {
  test('has a record on disk when add resolves (law 1)', async () => {
    const { place } = await sandbox()
    await using journal = await Journal.create(place, header())
    await journal.add({ undo: 'a', vm: 'web01' })
    assert.deepEqual(readJournal(await text(journal)).left, [{ undo: 'a', vm: 'web01' }])
    journal.done(1)
  })

  test('replaces a record in one line: there is no moment with both or neither', async () => {
    const { place } = await sandbox()
    await using journal = await Journal.create(place, header())
    const first = await journal.add({ undo: 'a' })
    await journal.add({ undo: 'b' }, first)
    const lines = (await text(journal)).trimEnd().split('\n')
    assert.equal(lines.length, 3)
    for (let cut = 2; cut <= 3; cut++) {
      const { left: records } = readJournal(`${lines.slice(0, cut).join('\n')}\n`)
      assert.deepEqual(records, [{ undo: cut === 2 ? 'a' : 'b' }])
    }
    journal.done(2)
  })

  test('goes with its last record, and stays while one is left', async () => {
    const { place } = await sandbox()
    const journal = await Journal.create(place, header())
    const [one, two] = [await journal.add({ undo: 'a' }), await journal.add({ undo: 'b' })]
    journal.done(one)
    await journal[Symbol.asyncDispose]()
    assert.deepEqual(readJournal(await text(journal)).left, [{ undo: 'b' }])
    const other = await Journal.create(place, header())
    other.done(await other.add({ undo: 'a' }))
    await other[Symbol.asyncDispose]()
    assert.equal(existsSync(other.path), false)
    assert.equal(two, 2)
  })

  test('refuses a record while a guest is frozen: that is a bug (law 4)', async () => {
    const { place } = await sandbox()
    await using journal = await Journal.create(place, header())
    journal.hold()
    await assert.rejects(journal.add({ undo: 'a' }), /bug: undo records are written before Freeze/)
    journal.release()
    journal.done(await journal.add({ undo: 'a' }))
  })

  test('writes nothing while a guest is frozen, and afterwards what was done meanwhile (law 4)', async () => {
    const { place } = await sandbox()
    const journal = await Journal.create(place, header())
    const id = await journal.add({ undo: 'a' })
    await journal.add({ undo: 'b' })
    const before = await text(journal)
    journal.hold()
    journal.hold() // windows may overlap: the last one to close counts
    journal.done(id)
    journal.release()
    await new Promise((resolve) => setTimeout(resolve, 20))
    assert.equal(await text(journal), before)
    journal.release()
    await journal[Symbol.asyncDispose]()
    assert.deepEqual(readJournal(await text(journal)).left, [{ undo: 'b' }])
  })

  test('is still before the next window: what the last one left to write is on disk (law 4)', async () => {
    const { place } = await sandbox()
    const journal = await Journal.create(place, header())
    const id = await journal.add({ undo: 'a' })
    journal.hold()
    journal.done(id)
    journal.release()
    await journal.settled()
    assert.deepEqual(readJournal(await text(journal)).left, [])
    await journal[Symbol.asyncDispose]()
  })

  test('that can not be begun leaves neither a file nor a lock', async () => {
    const { place } = await sandbox()
    const content = header()
    await mkdir(join(place, `${content.session}.jsonl`, 'in the way'), { recursive: true })
    await assert.rejects(Journal.create(place, content))
    const lock = await tryLock(place, content.session)
    assert.ok(lock !== undefined)
    await lock[Symbol.asyncDispose]()
  })
})

describe('what a journal on disk still asks for', () => {
  const head = JSON.stringify({ header: header() })

  test('is what was added and not done, newest first', () => {
    const { left: records } = readJournal([head, add(1, 'a'), add(2, 'b'), done(1), add(3, 'c'), ''].join('\n'))
    assert.deepEqual(records, [{ undo: 'c' }, { undo: 'b' }])
  })

  test('does not include a last line cut short at any byte: its deed was not begun (law 1)', () => {
    const whole = `${[head, add(1, 'a'), add(2, 'b')].join('\n')}\n`
    const from = whole.length - add(2, 'b').length - 1
    for (let cut = from; cut < whole.length; cut++) {
      assert.deepEqual(readJournal(whole.slice(0, cut)).left, [{ undo: 'a' }], `cut at ${cut}`)
    }
    assert.equal(readJournal(whole).left.length, 2)
  })

  test('is refused when a line in the middle is damaged: that is no crash of ours', () => {
    assert.throws(() => readJournal([head, '{"add":1,', add(2, 'b'), ''].join('\n')))
  })
})

describe('recovery', () => {
  test('undoes what a dead session left, newest first, and removes its journal (law 2)', async () => {
    const { place, undone, options } = await sandbox()
    const path = await left(place, [add(1, 'a'), add(2, 'b'), add(3, 'c'), done(2), ''])
    const [recovered, ...others] = await recoverInterrupted(place, options)
    assert.deepEqual(undone, ['c', 'a'])
    assert.deepEqual(recovered?.undone, ['c', 'a'])
    assert.deepEqual(recovered?.failed, [])
    assert.equal(others.length, 0)
    assert.equal(existsSync(path), false)
  })

  test('removes a journal whose header was cut short: nothing had been done', async () => {
    const { place, undone, options } = await sandbox()
    const path = join(place, 'torn.jsonl')
    for (const torn of ['', '{"header":{"session":"x"', '{"header":{"session":"x","what":"backup"}}']) {
      await writeFile(path, torn)
      const recovered = await recoverJournal(path, options)
      assert.deepEqual(recovered?.failed, [])
      assert.equal(existsSync(path), false)
    }
    assert.deepEqual(undone, [])
  })

  test('leaves a journal alone whose session is alive', async () => {
    const { place, undone, options } = await sandbox()
    await using journal = await Journal.create(place, header())
    await journal.add({ undo: 'a' })
    assert.deepEqual(await recoverInterrupted(place, options), [])
    assert.deepEqual(undone, [])
    assert.ok(existsSync(journal.path))
    journal.done(1)
  })

  test('waits for a watchdog that is at work on the journal of a dead session, and then has nothing to do', async () => {
    const { place, undone, clock, options } = await sandbox()
    const path = await left(place, [add(1, 'a'), ''])
    const session = path.replace(/^.*\//, '').replace('.jsonl', '')
    const watchdog = await tryLock(place, session)
    const recovering = recoverJournal(path, options)
    clock.timer(5_000, () => {
      void rm(path).then(() => watchdog?.[Symbol.asyncDispose]())
    })
    assert.equal(await clock.drive(recovering, { idleMs: 2 }), undefined)
    assert.ok(clock.monotonicMs() >= 5_000)
    assert.deepEqual(undone, [])
  })

  test('takes over when the watchdog gives up', async () => {
    const { place, undone, clock, options } = await sandbox()
    const path = await left(place, [add(1, 'a'), ''])
    const session = path.replace(/^.*\//, '').replace('.jsonl', '')
    const watchdog = await tryLock(place, session)
    clock.timer(1_000, () => void watchdog?.[Symbol.asyncDispose]())
    await clock.drive(recoverJournal(path, options), { idleMs: 2 })
    assert.deepEqual(undone, ['a'])
  })

  test('waits for a killed process that still looks alive, when its pipe has broken', async () => {
    const { place, undone, clock, options } = await sandbox()
    const journal = await Journal.create(place, header()) // its process is this one: alive
    await journal.add({ undo: 'a' })
    clock.timer(1_000, () => void journal[Symbol.asyncDispose]())
    await clock.drive(recoverJournal(journal.path, { ...options, ownerIsGone: true }), { idleMs: 2 })
    assert.deepEqual(undone, ['a'])
  })

  test('does not wait for ever for a lock that nobody gives back', async () => {
    const { place, clock, options } = await sandbox()
    const path = await left(place, [add(1, 'a'), ''])
    await using _lock = await tryLock(place, path.replace(/^.*\//, '').replace('.jsonl', ''))
    assert.equal(await clock.drive(recoverJournal(path, { ...options, waitMs: 1_000 }), { idleMs: 0 }), undefined)
    assert.ok(existsSync(path))
  })

  test('reports steps that fail, tries all the others, and keeps the journal until all succeed', async () => {
    let broken = true
    const { place, undone, options } = await sandbox({
      b: async () => {
        if (broken) throw new Error('the storage is gone')
        undone.push('b')
      },
    })
    const path = await left(place, [add(1, 'a'), add(2, 'b'), add(3, 'c'), ''])
    const [first] = await recoverInterrupted(place, options)
    assert.deepEqual(first?.failed, ['b: the storage is gone'])
    assert.deepEqual(undone, ['c', 'a'])
    assert.ok(existsSync(path))
    broken = false
    undone.length = 0
    const [second] = await recoverInterrupted(place, options)
    assert.deepEqual(second?.failed, [])
    assert.deepEqual(undone, ['c', 'b', 'a'], 'steps that are undone already are undone once more (law 2)')
    assert.deepEqual(await readdir(place), [])
  })

  test('bounds each step in time (law 3)', async () => {
    const { place, undone, clock, options } = await sandbox({ b: () => new Promise(() => undefined) })
    await left(place, [add(1, 'a'), add(2, 'b'), ''])
    const [result] = await clock.drive(recoverInterrupted(place, { ...options, stepDeadlineMs: 1_000 }), { idleMs: 2 })
    assert.deepEqual(result?.failed, ['b: b did not finish within 1000 ms'])
    assert.deepEqual(undone, ['a'])
  })

  test('thaws before anything else, however much came later: a guest may not wait for a merge', async () => {
    const order: string[] = []
    const note = async ({ undo }: UndoRecord) => void order.push(undo)
    const { place, options } = await sandbox({ 'thaw-guest': note, 'merge-overlay': note, 'return-vm': note })
    await left(place, [add(1, 'return-vm'), add(2, 'thaw-guest'), add(3, 'merge-overlay'), ''])
    await recoverInterrupted(place, { ...options, urgent: ['thaw-guest'] })
    assert.deepEqual(order, ['thaw-guest', 'merge-overlay', 'return-vm'])
  })

  test('of a directory that is not there is nothing to do', async () => {
    const { place, options } = await sandbox()
    assert.deepEqual(await recoverInterrupted(join(place, 'none'), options), [])
  })
})
