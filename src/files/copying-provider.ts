/**
 * The plain provider for directories: reads the whole tree into one file of the work directory while writes are held. It
 * is the least specific one, for file systems that can make no copy by themselves, and only for trees that fit into those
 * seconds. Everything slow (looking for room, making the file) is done before Freeze; in the window it is only filled.
 */
import { type FileHandle, open, realpath, statfs } from 'node:fs/promises'
import { join, sep } from 'node:path'
import { mapLimit, settleAll } from '../base/async.ts'
import type { UndoStep } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { makeDirectory } from '../base/make-directory.ts'
import { openHostFile } from '../disk/host-file.ts'
import { failure } from '../errors.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../vss/provider.ts'
import type { HeldWrites } from '../vss/windows.ts'
import { type DirectorySource, openDirectory } from './directory-source.ts'
import { copySuffix } from './undo.ts'

export const defaultCopyLimitBytes = 256 * 1024 * 1024
const pieceBytes = 1024 * 1024
const piecesAtOnce = 4

export interface CopyingProviderOptions {
  readonly workDirectory: string
  readonly limitBytes?: number
  readonly clock?: Clock
}

interface Copy {
  readonly volume: Volume
  readonly path: string
  readonly remove: UndoStep
  readonly file: FileHandle
}

export class CopyingProvider implements Provider {
  readonly id = 'b1f6d0a8-6c0e-4c11-8f3f-7d9b8b5e2c90'
  readonly name = 'Umbra Copying Provider'
  readonly #options: CopyingProviderOptions
  readonly #clock: Clock
  #volumes: Volume[] = []
  #copies: Copy[] = []
  /** Settles when no commit is on its way. */
  #committing: Promise<unknown> = Promise.resolve()

  constructor(options: CopyingProviderOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  supports({ properties }: Volume): number {
    return properties.kind === 'host-directory' && typeof properties.path === 'string' ? 1 : 0
  }

  /** A copy inside of what it copies would have no end. */
  async beginPrepareSnapshot(_session: ProviderSession, volume: Volume): Promise<void> {
    const { workDirectory } = this.#options
    await makeDirectory(workDirectory, 0o700)
    const [from, to] = await Promise.all([realpath(directoryOf(volume)), realpath(workDirectory)])
    if (`${to}${sep}`.startsWith(`${from}${sep}`)) {
      throw failure('FILES_NOT_COPIED', { path: from, reason: `${to}, where copies are put, lies in it` })
    }
    this.#volumes.push(volume)
  }

  async endPrepareSnapshots({ undo, snapshotSetId, signal }: ProviderSession): Promise<void> {
    let neededBytes = 0
    for (const volume of this.#volumes) {
      await using source = await openDirectory(directoryOf(volume), volume, { signal, inUse: true })
      this.#requireSmall(volume, source)
      neededBytes += source.sizeBytes
    }
    const { workDirectory } = this.#options
    const { bavail, bsize } = await statfs(workDirectory)
    if (bavail * bsize < neededBytes) {
      throw failure('VSS_INSUFFICIENT_STORAGE', { path: workDirectory, freeBytes: bavail * bsize, neededBytes })
    }
    for (const volume of this.#volumes) {
      const path = join(workDirectory, `${snapshotSetId}-${volume.component}${copySuffix}`)
      const remove = await undo.defer({ undo: 'remove-copied-files', path })
      this.#copies.push({ volume, path, remove, file: await open(path, 'wx', 0o600) })
    }
  }

  preCommitSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  async commitSnapshots(
    { signal }: ProviderSession,
    volumes: readonly Volume[],
    held: HeldWrites,
  ): Promise<readonly Instant[]> {
    const mine = this.#copies.filter(({ volume }) => volumes.includes(volume))
    const work = settleAll(mine, async (copy) => {
      const beganMs = this.#clock.monotonicMs()
      await this.#fill(copy, signal, held)
      return { component: copy.volume.component, beganMs, endedMs: this.#clock.monotonicMs() }
    })
    this.#committing = work
    return (await work).map(({ outcome }) => {
      if (!outcome.ok) throw outcome.error
      return outcome.value
    })
  }

  postCommitSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  async preFinalCommitSnapshots(): Promise<readonly ShadowCopy[]> {
    return this.#copies.map(({ volume, path }) => {
      return { id: volume.id, volume, provider: this.name, open: () => openHostFile(path) }
    })
  }

  postFinalCommitSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  async abortSnapshots(session: ProviderSession): Promise<void> {
    await this.#committing
    await this.deleteSnapshots(session)
  }

  async deleteSnapshots({ undo }: ProviderSession): Promise<void> {
    this.#volumes = []
    for (const { file, remove } of this.#copies.splice(0)) {
      await file.close()
      await undo.run(remove)
    }
  }

  /** Stops by itself when the window closes: what is not read by then is of no instant. */
  async #fill({ volume, file }: Copy, signal: AbortSignal, held: HeldWrites): Promise<void> {
    await using source = await openDirectory(directoryOf(volume), volume, { signal })
    this.#requireSmall(volume, source)
    const pieces = Array.from({ length: Math.ceil(source.sizeBytes / pieceBytes) }, (_, index) => index * pieceBytes)
    let failed = false
    await mapLimit(pieces, piecesAtOnce, async (offset) => {
      if (failed) return // the first failure is told; the rest would only hold the application longer
      try {
        signal.throwIfAborted()
        if (!held.open) throw failure('VSS_BAD_STATE', { call: 'commitSnapshots', state: 'writes no longer held' })
        await copyPiece(source, file, offset)
      } catch (error) {
        failed = true
        throw error
      }
    })
  }

  #requireSmall(volume: Volume, { sizeBytes }: DirectorySource): void {
    const { limitBytes = defaultCopyLimitBytes } = this.#options
    if (sizeBytes > limitBytes) {
      throw failure('FILES_TOO_LARGE', { directory: directoryOf(volume), sizeBytes, limitBytes })
    }
  }
}

async function copyPiece(source: DirectorySource, file: FileHandle, offset: number): Promise<void> {
  const piece = Buffer.allocUnsafe(Math.min(pieceBytes, source.sizeBytes - offset))
  await source.read(offset, piece)
  for (let done = 0; done < piece.length; ) {
    done += (await file.write(piece, done, piece.length - done, offset + done)).bytesWritten
  }
}

const directoryOf = ({ properties }: Volume): string => String(properties.path)
