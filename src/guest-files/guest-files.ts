/**
 * The files of one VM in a recovery point, over its helper VM. Symbolic links are followed here, name by name and within their
 * file system: the helper VM is only ever asked for paths that hold none.
 */
import { failure } from '../errors.ts'
import { type GuestFile, readRecords } from './file-record.ts'
import { chooseFileSystems, type GuestFileSystem, parseFileSystems } from './file-systems.ts'
import { DeadEnd, goOn, nextLook, wayOf } from './follow-path.ts'
import { escapeName, type GuestPlace, namesOf, relativePath } from './guest-path.ts'
import { type Answer, type AnswerEnd, type GuestReader, wholeAnswer } from './guest-reader.ts'

export interface GuestFilesOptions {
  /** How many disks it has. */
  readonly disks: number
  /** What the helper VM has to tell, such as files that can not be read. */
  readonly onNote: (note: string) => void
}

/** A file that is there, under its real path. */
export interface FoundFile {
  readonly fileSystem: GuestFileSystem
  readonly file: GuestFile
}

const mostListBytes = 4 * 1024 * 1024
const longestPathBytes = 4096
/** The helper VM did nothing. */
const refusedExit = 3

export class GuestFiles {
  readonly #reader: GuestReader
  readonly #options: GuestFilesOptions
  #fileSystems: readonly GuestFileSystem[] | undefined
  #problems = 0

  constructor(reader: GuestReader, options: GuestFilesOptions) {
    this.#reader = reader
    this.#options = options
  }

  /** How many requests could not be answered as a whole: notes say why. */
  get problems(): number {
    return this.#problems
  }

  async fileSystems(): Promise<readonly GuestFileSystem[]> {
    if (this.#fileSystems !== undefined) return this.#fileSystems
    const { bytes, end } = await wholeAnswer(this.#reader.ask(['list', String(this.#options.disks)]), mostListBytes)
    this.#note(end)
    this.#fileSystems = parseFileSystems(bytes.toString('latin1'))
    return this.#fileSystems
  }

  /**
   * The file that a place names; `follow`: what its last name leads to if that is a symbolic link. A path alone must be on
   * exactly one file system. GUEST_PATH_NOT_FOUND, GUEST_PATH_AMBIGUOUS, GUEST_FILE_SYSTEM_NOT_FOUND, GUEST_FILE_SYSTEM_UNREADABLE.
   */
  async find(place: GuestPlace, { follow }: { follow: boolean }): Promise<FoundFile> {
    const candidates = chooseFileSystems(await this.fileSystems(), place)
    const found: FoundFile[] = []
    const refusals: unknown[] = []
    for (const fileSystem of candidates) {
      try {
        found.push({ fileSystem, file: await this.#walk(fileSystem, place, follow) })
      } catch (error) {
        if (!isAbsence(error)) throw error
        refusals.push(error)
      }
    }
    const [only, ...more] = found
    if (more.length > 0) {
      const places = found.map(({ fileSystem }) => fileSystem.name).join(', ')
      throw failure('GUEST_PATH_AMBIGUOUS', { path: place.text, places })
    }
    if (only !== undefined) return only
    if (refusals.length === 1) throw refusals[0]
    throw failure('GUEST_PATH_NOT_FOUND', { path: place.text, reason: 'no file system has it' })
  }

  /** The names in a directory, in the order of their bytes. Undefined when there are more than `most`. */
  async list({ fileSystem, file }: FoundFile, most: number): Promise<GuestFile[] | undefined> {
    const answer = this.#ask(fileSystem, 'ls', [relativePath(namesOf(file.path))])
    const files: GuestFile[] = []
    let length = 0
    for await (const one of this.#records(answer)) {
      if (one !== undefined && ++length <= most) files.push(one)
    }
    if (length > most) return undefined
    return files.toSorted((a, b) => (a.path < b.path ? -1 : 1))
  }

  /** What lies below a directory and has a name that fits, as it is found; undefined as a sign of life. */
  search({ fileSystem, file }: FoundFile, pattern: string): AsyncGenerator<GuestFile | undefined, void> {
    return this.#records(this.#ask(fileSystem, 'search', [relativePath(namesOf(file.path)), pattern]))
  }

  /** The content of a file. Rejects at its end with GUEST_FILES_INCOMPLETE when it could not be read as a whole. */
  async *content({ fileSystem, file }: FoundFile): AsyncGenerator<Buffer, void> {
    let length = 0
    const answer = this.#ask(fileSystem, 'cat', [relativePath(namesOf(file.path))])
    for (;;) {
      const { done, value } = await answer.next()
      if (done) {
        this.#note(value)
        if (value.exit === 0 && length === file.sizeBytes) return
        throw failure('GUEST_FILES_INCOMPLETE', { path: escapeName(file.path), reason: reasonOf(value) })
      }
      length += value.length
      if (length > file.sizeBytes) throw failure('GUEST_FILES_REFUSED', { reason: 'a file has more than its size' })
      yield value
    }
  }

  /** An archive of GNU tar: of what is in a directory, or of one name in its directory. Its end is the caller's to judge. */
  archive({ fileSystem, file }: FoundFile): Answer {
    const names = namesOf(file.path)
    if (file.kind === 'directory') return this.#ask(fileSystem, 'tar', [relativePath(names), '.'])
    return this.#ask(fileSystem, 'tar', [relativePath(names.slice(0, -1)), relativePath(names.slice(-1))])
  }

  /** Counts an answer that was not whole, and tells what it has to say. */
  #note({ exit, notes }: AnswerEnd): void {
    if (exit !== 0) this.#problems++
    for (const note of notes) this.#options.onNote(note)
  }

  async *#records(answer: Answer): AsyncGenerator<GuestFile | undefined, void> {
    this.#note(yield* readRecords(answer))
  }

  /** Throws GUEST_FILE_SYSTEM_UNREADABLE when the helper VM refused. */
  async *#ask({ index, name }: GuestFileSystem, verb: string, words: readonly string[]): Answer {
    const end = yield* this.#reader.ask([verb, String(index), ...words])
    if (end.exit === refusedExit) throw failure('GUEST_FILE_SYSTEM_UNREADABLE', { name, reason: reasonOf(end) })
    return end
  }

  async #walk(fileSystem: GuestFileSystem, place: GuestPlace, follow: boolean): Promise<GuestFile> {
    let way = wayOf(place.names)
    try {
      for (;;) {
        const looked = await this.#look(fileSystem, nextLook(way))
        way = goOn(way, looked, follow)
        const file = looked.get(way.real.join('/'))
        if (way.left.length === 0 && file !== undefined) return file
      }
    } catch (error) {
      if (error instanceof DeadEnd) throw failure('GUEST_PATH_NOT_FOUND', { path: place.text, reason: error.message })
      throw error
    }
  }

  /** What is at these paths; undefined where nothing is. */
  async #look(fileSystem: GuestFileSystem, paths: readonly (readonly string[])[]) {
    const looked = new Map<string, GuestFile | undefined>(paths.map((path) => [path.join('/'), undefined]))
    const words = paths.map(relativePath)
    if (words.some((word) => word.length > longestPathBytes)) throw new DeadEnd('a path is too long')
    for await (const file of this.#records(this.#ask(fileSystem, 'stat', words))) {
      if (file === undefined || !looked.has(file.path)) {
        throw failure('GUEST_FILES_REFUSED', { reason: 'it tells of a file that it was not asked for' })
      }
      looked.set(file.path, file)
    }
    const first = paths[0]?.join('/') ?? ''
    if (looked.get(first)?.kind === undefined) throw new DeadEnd(`there is no ${escapeName(first) || 'root directory'}`)
    return looked
  }
}

const reasonOf = ({ exit, notes }: AnswerEnd): string => notes.join('; ') || `it ended with ${exit}`

const isAbsence = (error: unknown): boolean =>
  error instanceof Error &&
  'code' in error &&
  (error.code === 'GUEST_PATH_NOT_FOUND' || error.code === 'GUEST_FILE_SYSTEM_UNREADABLE')
