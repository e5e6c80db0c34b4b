/**
 * The backup application's side of a restore. Every byte is read, verified and written to staged files while everything
 * old still stands and runs; only then PreRestore, where the files take their places; PostRestore registers. There is no
 * abort (law 9): what PreRestore set aside comes back by the session's undo unless PostRestore succeeds.
 */
import { chmod, chown, lstat, open, rename, stat, statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Clock } from '../base/clock.ts'
import { invariant } from '../base/failure.ts'
import { makeDirectory } from '../base/make-directory.ts'
import type { BlockSink, BlockSource, LendingSource } from '../disk/block-device.ts'
import { createHostFile } from '../disk/host-file.ts'
import { failure } from '../errors.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import type { BackedUpComponent, ComponentRef } from '../vss/components.ts'
import { RestoreComponents } from '../vss/restore-components.ts'
import type { ComponentRestorePlan, RestorePlanner, RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import type { FileRestoreStatus, SessionEvent } from '../vss/vocabulary.ts'
import type { Writer } from '../vss/writer.ts'
import { type Progress, ProgressMeter } from './progress.ts'
import { keepingResult, RequesterSession, type SessionOptions } from './session.ts'
import { findStored, readStored } from './stored-components.ts'
import { writeOut } from './transfer.ts'
import { writeDifferences } from './write-differences.ts'

export interface RestoreEnvironment {
  readonly repository: Repository
  readonly writers: readonly Writer[]
  readonly planner: RestorePlanner
  /** Creates an image of that format and opens it for writing. */
  readonly createImage: (path: string, format: string, sizeBytes: number) => Promise<BlockSink>
  /** A clone of a raw image beside it, open for both; undefined where none can be made. */
  readonly cloneImage?: (
    from: string,
    path: string,
    sizeBytes: number,
  ) => Promise<(BlockSource & BlockSink) | undefined>
  /** Makes a directory of the files that a stream holds; without it no plan has one. */
  readonly extractTree?: (source: BlockSource, path: string, options: ExtractTreeOptions) => Promise<void>
  readonly clock: Clock
  readonly session: SessionOptions
  readonly onEvent?: (event: SessionEvent) => void
  readonly onProgress?: (progress: Progress) => void
}

export interface ExtractTreeOptions {
  readonly signal: AbortSignal
  readonly onProgress: (bytes: number) => void
}

export interface RestoreResult {
  readonly recoveryPoint: string
  readonly vms: readonly {
    readonly name: string
    readonly files: readonly string[]
    readonly steps: readonly string[]
    readonly warnings: readonly string[]
  }[]
  readonly durationMs: number
  /** What is left to clean up; empty unless the exit code is 3. */
  readonly cleanup: readonly string[]
}

/** The plan for the components of a point that are called `names` (all when empty). Touches nothing. */
export async function planRestore(
  point: RecoveryPoint,
  names: readonly string[],
  request: RestoreRequest,
  planner: RestorePlanner,
): Promise<{ stored: readonly BackedUpComponent[]; plans: readonly ComponentRestorePlan[] }> {
  const stored = await findStored(point, names)
  if (request.as !== undefined && stored.length > 1)
    throw failure('USAGE', { reason: '--as takes one VM: choose it with --vm' })
  if ((request.disks !== undefined || request.only !== undefined) && stored.length > 1)
    throw failure('USAGE', { reason: '--disk and --only-disk take one VM: choose it with --vm' })
  const plans: ComponentRestorePlan[] = []
  for (const one of stored) plans.push(await planner.planRestore(await readStored(point, one), request))
  return { stored, plans: plans.map((plan, index) => withoutClash(plan, plans.slice(0, index))) }
}

/** Two components must not become one file. */
function withoutClash(plan: ComponentRestorePlan, before: readonly ComponentRestorePlan[]): ComponentRestorePlan {
  const clashes = before.flatMap(({ caption, targets }) =>
    targets
      .filter(({ path }) => plan.targets.some((target) => target.path === path))
      .map(({ path }) => `${path} would be a file of ${caption} too: restore them one by one`),
  )
  return clashes.length === 0 ? plan : { ...plan, obstacles: [...plan.obstacles, ...clashes] }
}

export async function restore(
  point: RecoveryPoint,
  names: readonly string[],
  request: RestoreRequest,
  environment: RestoreEnvironment,
): Promise<RestoreResult> {
  const { planner, clock } = environment
  const beganMs = clock.monotonicMs()
  const { stored, plans } = await planRestore(point, names, request, planner)
  const obstacles = plans.flatMap((plan) => plan.obstacles.map((obstacle) => `${plan.caption}: ${obstacle}`))
  if (obstacles.length > 0)
    throw failure('VSS_WRITER_VETO', { event: 'PreRestore', done: 'restored', reasons: obstacles })

  return keepingResult<Omit<RestoreResult, 'cleanup'>>(async (made) => {
    await using session = await RequesterSession.open(environment.session)
    if (environment.onEvent !== undefined) session.events.listen(environment.onEvent)
    await restoreInSession(point, stored, plans, environment, session)
    const vms = plans.map(({ caption, targets, steps, warnings }) => {
      return { name: caption, files: targets.map(({ path }) => path), steps, warnings }
    })
    made.result = { recoveryPoint: point.id, vms, durationMs: Math.round(clock.monotonicMs() - beganMs) }
  })
}

async function restoreInSession(
  point: RecoveryPoint,
  stored: readonly BackedUpComponent[],
  plans: readonly ComponentRestorePlan[],
  environment: RestoreEnvironment,
  session: RequesterSession,
): Promise<void> {
  const { undo, events, signal } = session
  for (const { component, caption } of plans) await session.lockComponent(component, caption)
  const service = { writers: environment.writers, undo, emit: events.emit }
  await using components = RestoreComponents.initializeForRestore(service, stored)
  for (const { component } of plans) components.setSelectedForRestore(component)

  await stageAll(point, plans, environment, session) // the last moment to say no
  await session.guarded()
  signal.throwIfAborted()
  await components.preRestore() // no way back by request beyond this line
  for (const plan of plans) components.setFileRestoreStatus(plan.component, await place(plan))
  await components.postRestore()
}

/** Writes every file beside its place. All of it is verified on the way: a damaged chunk ends the restore here. */
async function stageAll(
  point: RecoveryPoint,
  plans: readonly ComponentRestorePlan[],
  environment: RestoreEnvironment,
  { undo, signal, events }: RequesterSession,
): Promise<void> {
  const meter = new ProgressMeter(environment.clock, environment.onProgress)
  for (const { targets } of plans) for (const { path } of targets) await makeDirectory(dirname(path))
  await requireSpace(point, plans, environment.repository.chunkSizeBytes)
  for (const { component, caption, targets } of plans) {
    for (const target of targets) {
      const { staged, format } = target
      await undo.defer(
        format === 'tree' ? { undo: 'remove-trees', paths: [staged] } : { undo: 'remove-file', path: staged },
      )
      await using source = await openStored(point, component, target)
      meter.begin(`${caption} ${target.path}`, source.sizeBytes)
      const written = await stage(target, source, environment, { signal, onProgress: (bytes) => meter.advance(bytes) })
      const how = written === undefined ? '' : `: ${written} of ${source.sizeBytes} bytes were different`
      events.emit({ event: 'Restore', vm: caption, detail: `${target.path} written and verified${how}` })
    }
  }
}

/**
 * Writes one target to where it is staged, with its owner and mode. Answers how many bytes had to be written, where only
 * differences were.
 */
async function stage(
  target: RestoreTarget,
  source: LendingSource,
  { repository, createImage, cloneImage, extractTree }: RestoreEnvironment,
  options: ExtractTreeOptions,
): Promise<number | undefined> {
  const { staged, format, base } = target
  if (format === 'tree') {
    invariant(extractTree !== undefined, 'a plan has a directory only where one can be made')
    await extractTree(source, staged, options)
    return undefined
  }
  const how = { chunkSizeBytes: repository.chunkSizeBytes, ...options }
  await using clone = base === undefined ? undefined : await cloneImage?.(base, staged, source.sizeBytes)
  if (clone !== undefined) {
    const written = await writeDifferences(source, clone, how)
    await giveTo(target)
    return written
  }
  await using sink = await (format === 'file'
    ? createHostFile(staged, source.sizeBytes)
    : createImage(staged, format, source.sizeBytes))
  await writeOut(source, sink, how)
  await giveTo(target)
  return undefined
}

/** Nothing is begun that the target's file system can not hold: what holds data in the recovery point needs room. */
async function requireSpace(
  point: RecoveryPoint,
  plans: readonly ComponentRestorePlan[],
  chunkSizeBytes: number,
): Promise<void> {
  const needed = new Map<number, { path: string; bytes: number }>()
  for (const { component, targets } of plans) {
    for (const { source, path } of targets) {
      const directory = dirname(path)
      const stream = 'stream' in source ? `${component.name}/${source.stream}` : undefined
      const { sizeBytes = 0, zeroChunks = 0 } = point.streams.find(({ name }) => name === stream) ?? {}
      const { dev } = await stat(directory)
      needed.set(dev, {
        path: directory,
        bytes: (needed.get(dev)?.bytes ?? 0) + Math.max(0, sizeBytes - zeroChunks * chunkSizeBytes),
      })
    }
  }
  for (const { path, bytes: neededBytes } of needed.values()) {
    const { bavail, bsize } = await statfs(path)
    const freeBytes = bavail * bsize
    if (freeBytes < neededBytes) throw failure('VSS_INSUFFICIENT_STORAGE', { path, freeBytes, neededBytes })
  }
}

/** Owner and mode as they were; private to root when that is not known. Only root can give files away. */
async function giveTo({ staged, owner }: RestoreTarget): Promise<void> {
  await chmod(staged, owner?.mode ?? 0o600)
  if (owner !== undefined && process.getuid?.() === 0) await chown(staged, owner.uid, owner.gid)
}

async function openStored(
  point: RecoveryPoint,
  component: ComponentRef,
  { source }: RestoreTarget,
): Promise<LendingSource> {
  if ('stream' in source) return point.openStream(`${component.name}/${source.stream}`)
  const content = await point.readDocument(`${component.name}/${source.document}`)
  return {
    sizeBytes: content.length,
    read: async (offset, target) => target.set(content.subarray(offset, offset + target.length)),
    async *extents(offset, length) {
      if (length > 0) yield { offset, length, data: true }
    },
    withBytes: (offset, length, use) => use(content.subarray(offset, offset + length)),
    [Symbol.asyncDispose]: async () => undefined,
  }
}

/**
 * Moves the staged files to their places. What went wrong is a status, which the writer answers in PostRestore. What has
 * appeared in a place since PreRestore is not ours to replace.
 */
async function place({ targets }: ComponentRestorePlan): Promise<FileRestoreStatus> {
  let placed = 0
  try {
    for (const { staged, path } of targets) {
      if (await lstat(path).catch(() => undefined)) throw new Error(`${path} has appeared meanwhile`)
      await rename(staged, path)
      placed++
    }
    for (const directory of new Set(targets.map(({ path }) => dirname(path)))) {
      await using handle = await open(directory)
      await handle.sync()
    }
    return 'all'
  } catch {
    return placed === 0 ? 'none' : 'failed'
  }
}
