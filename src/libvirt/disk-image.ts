/**
 * Disk images as files, made and looked at with qemu-img: see "QEMU disk image utility" of the QEMU documentation.
 * Formats are always stated, never probed, unless imageInfo is asked to find out. Paths are absolute, because QEMU
 * reads "json:" or "nbd:" at the beginning of a relative name as something else than a file.
 */
import { isAbsolute } from 'node:path'
import { z } from 'zod'
import { invariant } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'

export type ImageFormat = 'raw' | 'qcow2' | 'vpc' | 'vhdx' | 'qed' | 'vmdk' | 'vdi'

export interface ImageInfo {
  readonly format: string
  readonly virtualSizeBytes: number
  /** What the file occupies on its file system. */
  readonly allocatedBytes: number
  readonly clusterSizeBytes: number | undefined
  /** Resolved against the image's directory. */
  readonly backingFile: string | undefined
  readonly backingFormat: string | undefined
}

export interface CreateImageOptions {
  /** Only for qcow2. */
  readonly clusterSizeBytes?: number
  readonly signal?: AbortSignal | undefined
}

export interface CommitOptions {
  readonly deadlineMs?: number
  readonly signal?: AbortSignal | undefined
}

const quickMs = 30_000
const commitDeadlineMs = 6 * 60 * 60 * 1000
const maximumChainLength = 64

/** Creates an empty image that reports exactly `sizeBytes`. */
export async function createImage(
  path: string,
  format: ImageFormat,
  sizeBytes: number,
  options: CreateImageOptions = {},
): Promise<void> {
  invariant(sizeBytes % 512 === 0, 'the size of an image is a whole number of sectors')
  const settings = formatSettings(format, options)
  const settingArgs = settings.length === 0 ? [] : ['-o', settings.join(',')]
  const args = ['create', '-q', '-f', format, ...settingArgs, '--', absolute(path), String(sizeBytes)]
  await runCommand('qemu-img', args, { deadlineMs: quickMs, signal: options.signal })
}

/** VHD sizes are rounded up to a CHS geometry unless force_size is set; the other formats keep what they are given. */
function formatSettings(format: ImageFormat, { clusterSizeBytes }: CreateImageOptions): string[] {
  if (format === 'vpc') return ['subformat=dynamic', 'force_size=on']
  if (format === 'qcow2' && clusterSizeBytes !== undefined) return [`cluster_size=${clusterSizeBytes}`]
  return []
}

/**
 * Creates a qcow2 overlay. The base is not opened for writing and no lock of it is taken, so it may be in use by a
 * running VM: an overlay can be made before the freeze.
 */
export async function createOverlay(
  path: string,
  basePath: string,
  baseFormat: ImageFormat,
  options: { sizeBytes?: number; signal?: AbortSignal } = {},
): Promise<void> {
  const sizeBytes = options.sizeBytes ?? (await imageInfo(basePath, baseFormat)).virtualSizeBytes
  const backing = ['-u', '-b', absolute(basePath), '-F', baseFormat]
  const args = ['create', '-q', '-f', 'qcow2', ...backing, '--', absolute(path), String(sizeBytes)]
  await runCommand('qemu-img', args, { deadlineMs: quickMs, signal: options.signal })
}

/** Looks at an image without locking it; a running VM may hold it. Without `format` QEMU guesses: never for guests. */
export async function imageInfo(path: string, format?: ImageFormat): Promise<ImageInfo> {
  const formatArgs = format === undefined ? [] : ['-f', format]
  const args = ['info', '--output=json', '--force-share', ...formatArgs, '--', absolute(path)]
  const { stdout } = await runCommand('qemu-img', args, { deadlineMs: quickMs })
  return readImageInfo(path, stdout)
}

/**
 * Writes an overlay's contents into its immediate backing file. Nobody may have either open. The overlay keeps its
 * contents and is to be deleted by the caller, so that doing it again after a crash does no harm.
 */
export async function commitImage(path: string, format: ImageFormat, options: CommitOptions = {}): Promise<void> {
  const { backingFile, backingFormat } = await imageInfo(path, format)
  if (backingFile === undefined) throw failure('DISK_IMAGE_INVALID', { path, reason: 'it has no backing file' })
  if (backingFormat === undefined) throw unstatedBackingFormat(path)
  await runCommand('qemu-img', ['commit', '-q', '-d', '-f', format, '--', absolute(path)], {
    deadlineMs: options.deadlineMs ?? commitDeadlineMs,
    signal: options.signal,
    diesWithUs: true,
  })
}

/**
 * The images below `path`, nearest first. Refuses an image that does not state its backing file's format: QEMU would
 * guess it from contents that a guest may have written.
 */
export async function backingChain(path: string, format: ImageFormat): Promise<{ path: string; format: string }[]> {
  const chain: { path: string; format: string }[] = []
  let image = { path, format: format as string }
  for (;;) {
    const { backingFile, backingFormat } = await imageInfo(image.path, image.format as ImageFormat)
    if (backingFile === undefined) return chain
    if (backingFormat === undefined) throw unstatedBackingFormat(image.path)
    // Backing images that are no local files are left to QEMU to open.
    if (!isAbsolute(backingFile)) return chain
    image = { path: backingFile, format: backingFormat }
    chain.push(image)
    const reason = `it has more than ${maximumChainLength} backing files`
    if (chain.length > maximumChainLength) throw failure('DISK_IMAGE_INVALID', { path, reason })
  }
}

function unstatedBackingFormat(path: string) {
  return failure('DISK_IMAGE_INVALID', { path, reason: "it does not state its backing file's format" })
}

const sizeSchema = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)

const infoSchema = z.object({
  format: z.string().min(1),
  'virtual-size': sizeSchema,
  'actual-size': sizeSchema.optional(),
  'cluster-size': sizeSchema.optional(),
  'backing-filename': z.string().optional(),
  'full-backing-filename': z.string().optional(),
  'backing-filename-format': z.string().optional(),
})

/** Reads what qemu-img info prints as JSON. */
export function readImageInfo(path: string, json: string): ImageInfo {
  const parsed = infoSchema.safeParse(parseJson(json))
  if (!parsed.success) throw failure('DISK_IMAGE_INVALID', { path, reason: 'qemu-img info gives no valid answer' })
  const info = parsed.data
  return {
    format: info.format,
    virtualSizeBytes: info['virtual-size'],
    allocatedBytes: info['actual-size'] ?? 0,
    clusterSizeBytes: info['cluster-size'],
    backingFile: info['full-backing-filename'] ?? info['backing-filename'],
    backingFormat: info['backing-filename-format'],
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function absolute(path: string): string {
  invariant(isAbsolute(path), `the path of an image is absolute: ${path}`)
  return path
}
