/**
 * libvirt's checkpoint documents (libvirt docs, "Checkpoint XML format"), written and read. What tells an image from
 * another one in its place goes into the description: libvirt keeps the text and makes nothing of it.
 */
import { z } from 'zod'
import type { ImageMark, TrackedDisk, TrackingPoint } from '../vm/backup-job.ts'
import { attribute, child, children, descend, escapeXml, parseXml, text } from './xml-dom.ts'

/** `bitmap` of each disk is the one of the running VM: whoever asked with their sizes gets none for a broken one. */
export interface CheckpointDocument extends TrackingPoint {
  /** Targets of all disks that have a bitmap of this point, or should have. */
  readonly targets: readonly string[]
}

const mark = z.object({
  location: z.string(),
  sizeBytes: z.number().int().nonnegative().optional(),
  file: z.string().optional(),
})
const marks = z.object({ umbra: z.literal(1), disks: z.record(z.string(), mark) })

/** The description of a point; bounded by the number of disks of a VM. */
export function describeImages(images: ReadonlyMap<string, ImageMark>): string {
  return JSON.stringify({ umbra: 1, disks: Object.fromEntries(images) })
}

function readDescription(description: string | undefined): Readonly<Record<string, ImageMark>> {
  try {
    const parsed = marks.safeParse(JSON.parse(description ?? ''))
    return parsed.success ? (parsed.data.disks as Record<string, ImageMark>) : {}
  } catch {
    return {}
  }
}

/** For a new point (all disks of the VM are named, or libvirt would choose), or one that is to be known again. */
export function checkpointXml(
  name: string,
  disks: readonly { readonly target: string; readonly track: boolean }[],
  description = '',
): string {
  const elements = disks.map(({ target, track }) => {
    const how = track ? `checkpoint='bitmap' bitmap='${escapeXml(name)}'` : `checkpoint='no'`
    return `<disk name='${escapeXml(target)}' ${how}/>`
  })
  const about = description === '' ? '' : `<description>${escapeXml(description)}</description>`
  return `<domaincheckpoint><name>${escapeXml(name)}</name>${about}<disks>${elements.join('')}</disks></domaincheckpoint>`
}

/** A redefinition needs the time, which libvirt otherwise sets itself. */
export const withCreationTime = (xml: string, createdMs: number): string =>
  xml.replace('<disks>', () => `<creationTime>${Math.floor(createdMs / 1000)}</creationTime><disks>`)

/** `withSizes`: the document was asked for with the sizes, which libvirt gives for whole bitmaps only. */
export function readCheckpoint(xml: string, vm: string, withSizes: boolean): CheckpointDocument {
  const { root } = parseXml(xml, 'domaincheckpoint', vm)
  const images = readDescription(text(child(root, 'description')))
  const parent = text(descend(root, 'parent', 'name'))
  const disks = children(child(root, 'disks'), 'disk').flatMap((disk): TrackedDisk[] => {
    const target = attribute(disk, 'name')
    if (target === undefined || attribute(disk, 'checkpoint') !== 'bitmap') return []
    const image = Object.hasOwn(images, target) ? images[target] : undefined
    const size = attribute(disk, 'size')
    const changedBytes = size === undefined ? undefined : Number(size)
    const whole = changedBytes !== undefined && Number.isSafeInteger(changedBytes)
    return [
      {
        target,
        bitmap: withSizes ? (whole ? 'recording' : 'broken') : 'unknown',
        ...(withSizes && whole ? { changedBytes } : {}),
        ...(image === undefined ? {} : { image }),
      },
    ]
  })
  return {
    name: text(child(root, 'name')) ?? '',
    ...(parent === undefined ? {} : { parent }),
    createdMs: Number(text(child(root, 'creationTime')) ?? 0) * 1000,
    disks,
    targets: disks.map(({ target }) => target),
  }
}
