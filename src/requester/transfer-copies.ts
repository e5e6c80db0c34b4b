/**
 * From the copies of a set into a draft, disk by disk: what has changed where a provider knows it, otherwise everything,
 * compared by hash with the last recovery point.
 */
import type { Clock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { openHostFile } from '../disk/host-file.ts'
import type { PointDraft, StreamWriter } from '../repository/repository.ts'
import type { Changes } from '../vss/change-tracking.ts'
import type { Provider, ShadowCopy } from '../vss/provider.ts'
import type { ComponentOutcome } from '../vss/writer.ts'
import { readChanges, spotCheck } from './changed-blocks.ts'
import { type EarlierBackups, volumeStream } from './earlier-backups.ts'
import { type Progress, ProgressMeter } from './progress.ts'
import { readInto } from './transfer.ts'

/** How a disk got into the recovery point: everything, what changed, or everything although something was to build upon. */
export interface HowRead {
  readonly how: 'whole' | 'changed' | 'compared'
  /** The recovery point that the rest comes from, or that it was compared with. */
  readonly since?: string
  /** Why not only what changed. */
  readonly because?: string
}

export interface BackedUpDisk extends HowRead {
  readonly target: string
  /** Name of the provider that made its copy. */
  readonly provider: string
  readonly sizeBytes: number
  readonly readBytes: number
  readonly storedBytes: number
}

export interface TransferEnvironment {
  readonly chunkSizeBytes: number
  readonly blockSizeBytes: number
  readonly providers: readonly Provider[]
  readonly earlier: EarlierBackups
  /** Trust no change tracking. */
  readonly readAll: boolean
  /** Wraps what is read from, to slow it down. */
  readonly limitReads: (source: BlockSource) => BlockSource
  readonly signal: AbortSignal
  readonly clock: Clock
  readonly emit: (event: { event: string; vm?: string; detail?: string }) => void
  readonly onProgress: ((progress: Progress) => void) | undefined
}

/** By component. */
export type BackedUpDisks = ReadonlyMap<string, readonly BackedUpDisk[]>

export async function transferAll(
  copies: readonly ShadowCopy[],
  outcomes: readonly ComponentOutcome[],
  draft: PointDraft,
  environment: TransferEnvironment,
): Promise<BackedUpDisks> {
  const meter = new ProgressMeter(environment.clock, environment.onProgress)
  const disks = new Map<string, BackedUpDisk[]>()
  for (const copy of copies) {
    const { component } = copy.volume
    const disk = await transferDisk(copy, draft, environment, meter)
    disks.set(component, [...(disks.get(component) ?? []), disk])
  }
  for (const { component, files } of outcomes) {
    for (const file of files) {
      const name = `${component.name}/${file.name}`
      if ('content' in file) await draft.putDocument(name, file.content)
      else await transferFile(name, file.path, draft, environment, meter)
    }
  }
  return disks
}

async function transferDisk(
  { volume, open, provider, changes }: ShadowCopy,
  draft: PointDraft,
  environment: TransferEnvironment,
  meter: ProgressMeter,
): Promise<BackedUpDisk> {
  const { providers, earlier, readAll, emit, limitReads } = environment
  await using source = limitReads(await open())
  meter.begin(`${volume.caption} ${volume.name}`, source.sizeBytes)
  const wanted = builtUpon(readAll ? doubted : changes, (stamp) => earlier.point(volume, source.sizeBytes, stamp))
  const name = volumeStream(volume)
  const { opened, built } = await openStream(draft, name, source.sizeBytes, wanted)
  await using stream = opened
  const { how, readBytes } = await fill(stream, source, built, name, environment, meter)
  const { sizeBytes, storedBytes } = await stream.finish()
  const said = `${volume.name}: ${readBytes} bytes read${how.how === 'changed' ? ' of what changed' : ''}, ${storedBytes} stored`
  emit({ event: 'Transfer', vm: volume.caption, detail: how.because === undefined ? said : `${said}; ${how.because}` })
  const madeBy = providers.find(({ id }) => id === provider)?.name ?? provider
  return { target: volume.name, provider: madeBy, sizeBytes, readBytes, storedBytes, ...how }
}

/** An earlier point may have been removed, or found damaged, since it was chosen: then the disk stands by itself. */
async function openStream(draft: PointDraft, name: string, sizeBytes: number, built: BuiltUpon) {
  if (built.point === undefined) return { opened: await draft.openStream(name, sizeBytes), built }
  try {
    return { opened: await draft.openStream(name, sizeBytes, { point: built.point, stream: name }), built }
  } catch (error) {
    if (!(error instanceof Failure) || !error.code.startsWith('RECOVERY_POINT_')) throw error
    const alone: BuiltUpon = { point: undefined, because: describeError(error) }
    return { opened: await draft.openStream(name, sizeBytes), built: alone }
  }
}

type Point = NonNullable<ReturnType<EarlierBackups['point']>>

interface BuiltUpon {
  readonly point: Point | undefined
  /** Set when only what changed since that point has to be read. */
  readonly changes?: Extract<Changes, { since: string }>
  readonly because?: string
}

/** What is asked for with `readAll`. */
const doubted: Changes = { since: undefined, reason: 'no change tracking was to be trusted' }

/** A point may have been removed, or be of another size, since its stamp was found good. */
function builtUpon(changes: Changes | undefined, earlier: (stamp?: string) => Point | undefined): BuiltUpon {
  const newest = earlier()
  if (changes === undefined) return { point: newest }
  if (changes.since === undefined) return { point: newest, because: changes.reason }
  const point = earlier(changes.since)
  if (point !== undefined) return { point, changes }
  return { point: newest, because: `no disk of this size is in recovery point ${changes.since}` }
}

async function fill(
  stream: StreamWriter,
  source: BlockSource,
  { point, changes, because }: BuiltUpon,
  name: string,
  environment: TransferEnvironment,
  meter: ProgressMeter,
): Promise<{ how: HowRead; readBytes: number }> {
  const { chunkSizeBytes, blockSizeBytes, signal } = environment
  const options = { chunkSizeBytes, blockSizeBytes, signal, onProgress: (bytes: number) => meter.advance(bytes) }
  let doubt = because
  if (point !== undefined && changes !== undefined) {
    doubt = await doubtOf(source, point, changes, name, environment)
    if (doubt === undefined) {
      const readBytes = await readChanges(source, changes.ranges(), stream, options)
      return { how: { how: 'changed', since: point.id }, readBytes }
    }
  }
  stream.startEmpty() // holes are not written: they must not be as in the base
  const readBytes = await readInto(source, stream, options)
  const told = doubt === undefined ? {} : { because: doubt }
  return {
    how: point === undefined ? { how: 'whole', ...told } : { how: 'compared', since: point.id, ...told },
    readBytes,
  }
}

/** Why the tracked changes are not to be trusted; an earlier point that can not be read is no reason to build upon it. */
async function doubtOf(
  source: BlockSource,
  point: Point,
  changes: Extract<Changes, { since: string }>,
  name: string,
  environment: TransferEnvironment,
): Promise<string | undefined> {
  try {
    await using base = await point.openStream(name)
    const offset = await spotCheck(source, base, changes.ranges(), environment)
    if (offset === undefined) return undefined
    return `in doubt: at ${offset} the disk differs from recovery point ${point.id} where no change was recorded`
  } catch (error) {
    environment.signal.throwIfAborted()
    return `in doubt: recovery point ${point.id} could not be compared: ${describeError(error)}`
  }
}

async function transferFile(
  name: string,
  path: string,
  draft: PointDraft,
  { chunkSizeBytes, signal }: TransferEnvironment,
  meter: ProgressMeter,
): Promise<void> {
  await using source = await openHostFile(path)
  meter.begin(name, source.sizeBytes)
  await using stream = await draft.openStream(name, source.sizeBytes)
  const onProgress = (bytes: number) => meter.advance(bytes)
  await readInto(source, stream, { chunkSizeBytes, signal, onProgress })
  await stream.finish()
}
