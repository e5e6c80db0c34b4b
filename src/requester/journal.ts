/**
 * The undo journal: one file per session, one JSON line per record, each on stable storage before the deed it undoes.
 * What a session that was killed left is replayed, newest first, by the handlers that would have undone it anyway:
 * by the session's watchdog, by `umbra recover`, and by every command at its start.
 */
import { constants } from 'node:fs'
import { type FileHandle, open, readdir, readFile, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { z } from 'zod'
import { runUndo, type UndoHandlers, type UndoLog, type UndoRecord } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError, invariant } from '../base/failure.ts'
import { makeDirectory } from '../base/make-directory.ts'
import { isAtWork } from '../base/process-mark.ts'
import { failure } from '../errors.ts'
import type { QuietDuringFreeze } from '../vss/windows.ts'
import { type TryLock, tryLock } from './host-lock.ts'

export interface JournalHeader {
  readonly session: string
  readonly what: 'backup' | 'restore' | 'check'
  readonly startedAt: string
  /** The hypervisor the records speak of. */
  readonly uri: string
  /** The mark of the process that owns the session, as text. */
  readonly process: string
  readonly [key: string]: string
}

const header = z.object({ header: z.record(z.string(), z.string()) })
const line = z.object({
  add: z.number().int().optional(),
  record: z.looseObject({ undo: z.string() }).optional(),
  done: z.number().int().optional(),
})

/** The journal of a session that is under way. It holds the session's lock until it is closed. */
export class Journal implements UndoLog, QuietDuringFreeze, AsyncDisposable {
  readonly path: string
  readonly #file: FileHandle
  readonly #lock: AsyncDisposable
  readonly #open = new Set<number>()
  #last = 0
  #held = 0
  #kept = ''
  #writing: Promise<void> = Promise.resolve()

  private constructor(path: string, file: FileHandle, lock: AsyncDisposable) {
    this.path = path
    this.#file = file
    this.#lock = lock
  }

  static async create(directory: string, content: JournalHeader, take: TryLock = tryLock): Promise<Journal> {
    await makeDirectory(directory, 0o700)
    const lock = await take(directory, content.session)
    invariant(lock !== undefined, 'a session id is used once')
    await using unfinished = new AsyncDisposableStack()
    unfinished.use(lock)
    const path = join(directory, `${content.session}.jsonl`)
    unfinished.defer(() => rm(path, { force: true }))
    const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_APPEND
    const file = unfinished.use(await open(path, flags, 0o600))
    const journal = new Journal(path, file, lock)
    await journal.#append(`${JSON.stringify({ header: content })}\n`)
    await syncDirectory(directory)
    unfinished.move()
    return journal
  }

  async add(record: UndoRecord, supersedes?: number): Promise<number> {
    invariant(this.#held === 0, `undo records are written before Freeze, not during it (${record.undo})`)
    const id = ++this.#last
    await this.#append(
      `${JSON.stringify({ add: id, record, ...(supersedes === undefined ? {} : { done: supersedes }) })}\n`,
    )
    this.#open.add(id)
    if (supersedes !== undefined) this.#open.delete(supersedes)
    return id
  }

  /** Written late while a guest is frozen; a step undone twice does no harm. */
  done(id: number): void {
    this.#open.delete(id)
    const text = `${JSON.stringify({ done: id })}\n`
    if (this.#held > 0) this.#kept += text
    else void this.#append(text).catch(() => undefined) // replayed once more at worst
  }

  /** What the window before left to write may still be on its way. */
  async settled(): Promise<void> {
    await this.#writing.catch(() => undefined) // whoever wrote is told, or did not have to be
  }

  hold(): void {
    this.#held++
  }

  release(): void {
    this.#held--
    if (this.#held > 0 || this.#kept === '') return
    const text = this.#kept
    this.#kept = ''
    void this.#append(text).catch(() => undefined)
  }

  /** Ends the session. With nothing left to undo the file goes; else it stays for `umbra recover`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await using _lock = this.#lock
    await this.#writing.catch(() => undefined)
    await this.#file.close()
    if (this.#open.size > 0) return
    await rm(this.path, { force: true }).catch((error) => {
      throw failure('CLEANUP_INCOMPLETE', { steps: `removing ${this.path}: ${describeError(error)}` }, error)
    })
  }

  #append(text: string): Promise<void> {
    this.#writing = this.#writing.then(async () => {
      await this.#file.appendFile(text)
      await this.#file.datasync()
    })
    return this.#writing
  }
}

async function syncDirectory(directory: string): Promise<void> {
  await using handle = await open(directory, constants.O_RDONLY)
  await handle.sync()
}

/** What a journal on disk still asks for. A last line cut short by a crash was never acted upon and is ignored. */
export function readJournal(text: string): { header: JournalHeader; left: UndoRecord[] } {
  const [first = '', ...rest] = text.split('\n')
  const content = header.parse(JSON.parse(first)).header as unknown as JournalHeader
  const left = new Map<number, UndoRecord>()
  for (const [index, one] of rest.entries()) {
    if (one === '' || (index === rest.length - 1 && !text.endsWith('\n'))) continue
    const { add, record, done } = line.parse(JSON.parse(one))
    if (done !== undefined) left.delete(done)
    if (add !== undefined && record !== undefined) left.set(add, record as UndoRecord)
  }
  return { header: content, left: [...left.values()].reverse() }
}

export interface Recovered {
  readonly session: string
  readonly what: string
  readonly startedAt: string
  readonly undone: readonly string[]
  readonly failed: readonly string[]
}

export interface RecoveryOptions {
  /** The handlers for the hypervisor that a journal names. */
  readonly handlersFor: (content: JournalHeader) => Promise<UndoHandlers>
  /** Undo steps that can not wait for others, by name: a merge may take hours while a guest stands still. */
  readonly urgent?: readonly string[]
  readonly clock?: Clock
  readonly stepDeadlineMs?: number
  /**
   * The pipe of the session's process has broken, so it is killed and going: it gives back what it holds one after the other,
   * the lock perhaps later than the pipe, and until then looks alive.
   */
  readonly ownerIsGone?: boolean
  /** How long to wait for a watchdog that is at work on the journal of a dead session. */
  readonly waitMs?: number
  /** As in SessionOptions. */
  readonly tryLock?: TryLock
}

/** Replays the journals of sessions that are no longer alive. Steps that fail stay, and are reported. */
export async function recoverInterrupted(directory: string, options: RecoveryOptions): Promise<Recovered[]> {
  const names = await readdir(directory).catch(() => [])
  const recovered: Recovered[] = []
  for (const name of names.filter((one) => one.endsWith('.jsonl')).sort()) {
    const result = await recoverJournal(join(directory, name), options)
    if (result !== undefined) recovered.push(result)
  }
  return recovered
}

/** Replays one journal; undefined when its session is alive, or somebody else has just finished it. */
export async function recoverJournal(path: string, options: RecoveryOptions): Promise<Recovered | undefined> {
  const { clock = systemClock, stepDeadlineMs = 3_600_000, waitMs = 120_000, tryLock: take = tryLock } = options
  const { ownerIsGone = false } = options
  const session = basename(path, '.jsonl')
  let lock = await take(join(path, '..'), session)
  for (const endMs = clock.monotonicMs() + waitMs; lock === undefined && clock.monotonicMs() < endMs; ) {
    if (!ownerIsGone && (await isAtWork(await ownerOf(path)))) return undefined
    await clock.sleep(50)
    lock = await take(join(path, '..'), session)
  }
  if (lock === undefined) return undefined
  await using _held = lock
  const text = await readFile(path, 'utf8').catch(() => undefined)
  if (text === undefined) return undefined
  const recovered = await replay(path, text, clock, stepDeadlineMs, options)
  if (recovered.failed.length === 0) await rm(path, { force: true })
  return recovered
}

/** Runs what a journal asks for. What can not be read or reached is reported, and the journal stays. */
async function replay(
  path: string,
  text: string,
  clock: Clock,
  stepDeadlineMs: number,
  { handlersFor, urgent = [] }: RecoveryOptions,
): Promise<Recovered> {
  const session = basename(path, '.jsonl')
  const undone: string[] = []
  const failed: string[] = []
  // A header cut short: nothing was done yet.
  if (!text.includes('\n')) return { session, what: 'backup', startedAt: '', undone, failed }
  let content: JournalHeader | undefined
  try {
    const journal = readJournal(text)
    content = journal.header
    const handlers = journal.left.length === 0 ? {} : await handlersFor(content)
    const isUrgent = ({ undo }: UndoRecord) => urgent.includes(undo)
    for (const record of [...journal.left.filter(isUrgent), ...journal.left.filter((one) => !isUrgent(one))]) {
      const told = describeRecord(record)
      try {
        await runUndo(record, handlers, clock, stepDeadlineMs)
        undone.push(told)
      } catch (error) {
        failed.push(`${told}: ${describeError(error)}`)
      }
    }
  } catch (error) {
    failed.push(`${path}: ${describeError(error)}`)
  }
  return { session, what: content?.what ?? 'backup', startedAt: content?.startedAt ?? '', undone, failed }
}

async function ownerOf(path: string): Promise<string> {
  try {
    return readJournal(await readFile(path, 'utf8')).header.process
  } catch {
    return '' // gone by now, or cut short before it began
  }
}

/** One line for people. */
export function describeRecord(record: UndoRecord): string {
  const about = ['name', 'target', 'point', 'path'].flatMap((key) =>
    typeof record[key] === 'string' ? [String(record[key])] : [],
  )
  return [record.undo, ...about].join(' ')
}
