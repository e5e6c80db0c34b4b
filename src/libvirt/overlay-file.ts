/**
 * Overlay files on the host: made before they are needed, and looked at before one is deleted (QEMU documentation,
 * "QEMU disk image utility": create, map). An overlay counts as used as soon as one cluster of it says anything, be it
 * data or zeros; a file that some program has open is never judged.
 */
import { lstat, open, realpath, rm } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { describeError } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'
import type { DiskImage, DiskStorage } from '../vm/hypervisor.ts'
import { createOverlay, imageInfo } from './disk-image.ts'

/** `held`: a program has it open; `unreadable`: it is no qcow2 file that we could judge. */
export type OverlayUse = 'missing' | 'unused' | 'used' | 'held' | 'unreadable'

const quickMs = 30_000
/** QEMU closes an overlay a little after it has left it. */
const releasePatienceMs = 3_000
const extents = z.array(z.object({ depth: z.number(), present: z.boolean().optional(), data: z.boolean() }))

const isMissing = (error: unknown): boolean => error instanceof Error && 'code' in error && error.code === 'ENOENT'

/** How QEMU names what lies beneath an overlay, in the overlay's header. */
export function backingName(storage: DiskStorage): string {
  if ('file' in storage) return storage.file
  if ('blockDevice' in storage) return storage.blockDevice
  if ('nbd' in storage) {
    const { socketPath, host, port, exportName } = storage.nbd
    const name = encodeURIComponent(exportName)
    if (socketPath !== undefined) return `nbd+unix:///${name}?socket=${encodeURI(socketPath)}`
    return `nbd://${host ?? 'localhost'}:${port ?? 10809}/${name}`
  }
  const { pool, image, monitors, user, configFile } = storage.rbd
  const escaped = (text: string) => text.replace(/[\\:;@=]/g, '\\$&')
  const hosts = monitors.map(({ host, port }) => `${host}\\:${port}`).join('\\;')
  return [
    `rbd:${escaped(pool)}/${escaped(image)}`,
    ...(user === undefined ? [] : [`id=${escaped(user)}`]),
    ...(configFile === undefined ? [] : [`conf=${escaped(configFile)}`]),
    ...(hosts === '' ? [] : [`mon_host=${hosts}`]),
  ].join(':')
}

/** Makes an empty overlay; the base may be in use. Refuses a path that is taken. */
export async function makeOverlay(path: string, base: DiskImage, sizeBytes: number | undefined): Promise<void> {
  // qemu-img would overwrite; and a name in use may be another session's only copy of something.
  await open(path, 'wx', 0o600).then((file) => file.close())
  try {
    if ('file' in base.storage || 'blockDevice' in base.storage) {
      const size = sizeBytes === undefined ? {} : { sizeBytes }
      await createOverlay(path, backingName(base.storage), base.format, size)
      return
    }
    const backing = ['-b', backingName(base.storage), '-F', base.format]
    const size = sizeBytes === undefined ? [] : ['-u', String(sizeBytes)]
    const args = ['create', '-q', '-f', 'qcow2', ...backing, ...size.slice(0, 1), '--', path, ...size.slice(1)]
    await runCommand('qemu-img', args, { deadlineMs: quickMs })
  } catch (error) {
    await rm(path, { force: true })
    throw error
  }
}

/** What the overlay's header says lies beneath; undefined when it cannot be read. */
export async function headerBacking(path: string): Promise<string | undefined> {
  return (await imageInfo(path, 'qcow2').catch(() => undefined))?.backingFile
}

export async function overlayUse(path: string): Promise<OverlayUse> {
  const giveUpAt = performance.now() + releasePatienceMs
  for (;;) {
    const use = await lookAtOverlay(path)
    if (use !== 'held' || performance.now() > giveUpAt) return use
    await sleep(100)
  }
}

async function lookAtOverlay(path: string): Promise<OverlayUse> {
  try {
    if ((await lstat(path)).size === 0) return 'unused'
  } catch (error) {
    if (isMissing(error)) return 'missing'
    throw error
  }
  // Without its backing file, which may be in use or gone, and without --force-share: whoever writes to it is noticed.
  const image = { driver: 'qcow2', file: { driver: 'file', filename: path }, backing: null }
  try {
    const args = ['map', '--output=json', `json:${JSON.stringify(image)}`]
    const { stdout } = await runCommand('qemu-img', args, { deadlineMs: 10 * quickMs })
    return extents.parse(JSON.parse(stdout)).some((extent) => extent.present ?? extent.data) ? 'used' : 'unused'
  } catch (error) {
    return describeError(error).includes('lock') ? 'held' : 'unreadable'
  }
}

/** True when both mean the same bytes. */
export async function sameStorage(one: DiskStorage, other: DiskStorage): Promise<boolean> {
  if (backingName(one) === backingName(other)) return true
  const path = (storage: DiskStorage) =>
    'file' in storage ? storage.file : 'blockDevice' in storage ? storage.blockDevice : undefined
  const [first, second] = [path(one), path(other)]
  if (first === undefined || second === undefined) return false
  const resolved = await Promise.all([first, second].map((name) => realpath(name).catch(() => name)))
  return resolved[0] === resolved[1]
}

/**
 * A mark beside an overlay: everything in it has reached its base. Needed because a merged overlay that was not yet
 * deleted looks like one that a VM was forced off, and only the first may be deleted.
 */
const markOf = (overlay: string): string => `${overlay}.merged`

export async function markMerged(overlay: string): Promise<void> {
  await using file = await open(markOf(overlay), 'w', 0o600)
  await file.sync()
}

export async function isMarkedMerged(overlay: string): Promise<boolean> {
  return await lstat(markOf(overlay)).then(
    () => true,
    () => false,
  )
}

export const forgetMark = (overlay: string): Promise<void> => rm(markOf(overlay), { force: true })

/** The mark goes last: a mark without an overlay says nothing wrong. */
export async function deleteOverlay(overlay: string): Promise<void> {
  await rm(overlay, { force: true })
  await forgetMark(overlay)
}

export const pathTaken = (vm: string, overlay: string) =>
  failure('VM_STATE', { vm, state: 'to get an overlay', reason: `${overlay} exists already` })
