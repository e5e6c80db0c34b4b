/**
 * Files that are written under names of their own, and take their names when all of them are there. The names say which
 * process writes them, so that what one that was killed left can be told from what a living one needs.
 */
import { randomBytes } from 'node:crypto'
import { link, lstat, open, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ownProcessMark, parseProcessMark, processMarkText, processState } from '../base/process-mark.ts'
import { failure } from '../errors.ts'

const staging = '.umbra-new-'

/** Files under names of their own until all of them take their places; disposal removes those that did not. */
export class StagedFiles implements AsyncDisposable {
  /** Behind each name; says whose it is. */
  readonly #suffix: string
  readonly #staged = new Map<string, string>()
  readonly #placed: string[] = []
  #isComplete = false

  private constructor(suffix: string) {
    this.#suffix = suffix
  }

  static async open(): Promise<StagedFiles> {
    const mark = processMarkText(await ownProcessMark())
    return new StagedFiles(`${staging}${mark}-${randomBytes(2).toString('hex')}`)
  }

  stage(path: string): string {
    const staged = `${path}${this.#suffix}`
    this.#staged.set(path, staged)
    return staged
  }

  stagedOf(path: string): string {
    return this.#staged.get(path) ?? this.stage(path)
  }

  async write(path: string, content: Uint8Array): Promise<void> {
    await writeFile(this.stage(path), content, { flag: 'wx', mode: 0o600, flush: true })
  }

  async refuseExisting(path: string): Promise<void> {
    if ((await lstat(path).catch(() => undefined)) !== undefined) throw failure('EXPORT_FILE_EXISTS', { path })
  }

  /** All of them or none, and never over a file that came meanwhile. */
  async place(directory: string): Promise<void> {
    for (const [path, staged] of this.#staged) {
      await this.#placeOne(staged, path)
      this.#placed.push(path)
    }
    await using handle = await open(directory)
    await handle.sync()
    this.#isComplete = true
  }

  async #placeOne(staged: string, path: string): Promise<void> {
    try {
      await link(staged, path)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EEXIST') throw failure('EXPORT_FILE_EXISTS', { path })
      if (code !== 'EPERM' && code !== 'ENOTSUP' && code !== 'EOPNOTSUPP' && code !== 'ENOSYS') throw error
      await this.refuseExisting(path) // a file system without hard links
      await rename(staged, path)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const staged of this.#staged.values()) await rm(staged, { force: true })
    if (!this.#isComplete) for (const path of this.#placed) await rm(path, { force: true })
  }
}

/**
 * Removes the staged files in this directory whose process is dead, and answers their paths. Those of another host, and
 * whatever else has such a name, stay.
 */
export async function removeAbandoned(directory: string): Promise<string[]> {
  const removed: string[] = []
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    if (!entry.isFile() || !(await isAbandoned(entry.name))) continue
    const path = join(directory, entry.name)
    await rm(path, { force: true })
    removed.push(path)
  }
  return removed.sort()
}

async function isAbandoned(name: string): Promise<boolean> {
  const at = name.lastIndexOf(staging)
  const mark = at < 0 ? undefined : parseProcessMark(name.slice(at + staging.length))
  if (mark === undefined || !/-[0-9a-f]{4}$/.test(name)) return false
  return name.slice(at + staging.length, -5) === processMarkText(mark) && (await processState(mark)) === 'dead'
}
