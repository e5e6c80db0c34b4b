/**
 * What to do next to take an overlay off, as a pure function of what is seen. mergeOverlay looks, does the step, and
 * looks again, so that a crash after any step, of us, of libvirt or of the VM, leads to one of these situations.
 *
 * Which crash leaves an overlay that no VM names any more, and why deleting it loses nothing:
 * - prepared and never put on, or libvirt refused: no cluster of it was ever written ("unused").
 * - merged, but we died before deleting it: the mark was set when its data was in the base and the VM was about to be
 *   put on the base; only from then on can a VM be off an overlay that is in use.
 * In every other case ("used" without mark: a VM was started from another configuration, or libvirt died in the
 * milliseconds before it noted the overlay; "held": somebody writes to it) it is refused, because data would be lost.
 */
import type { OverlayUse } from './overlay-file.ts'

/** Where a description of the VM (running, defined, or in its memory image) has the disk. */
export type DiskPlace =
  | {
      readonly at: 'overlay'
      readonly onBase: boolean
      readonly job?: { readonly ours: boolean; readonly ready: boolean }
    }
  | { readonly at: 'base' }
  /** Another image lies on the overlay. */
  | { readonly at: 'above' }
  | { readonly at: 'elsewhere'; readonly location: string }
  | { readonly at: 'nowhere' }

export interface MergeSituation {
  /** The VM has a QEMU process. */
  readonly active: boolean
  readonly live: DiskPlace
  readonly defined: DiskPlace
  readonly savedMemory: DiskPlace
  readonly overlay: OverlayUse
  /** We have just copied the overlay of this VM, which is off, into its base. */
  readonly committed: boolean
  readonly markedMerged: boolean
}

export type MergeStep =
  | { readonly step: 'start-commit' | 'await-commit' | 'pivot' | 'commit-offline' }
  | { readonly step: 'repoint-memory' | 'repoint-definition' | 'delete-overlay' | 'done' }
  | { readonly step: 'refuse'; readonly reason: string }

const refuse = (reason: string): MergeStep => ({ step: 'refuse', reason })

export function nextMergeStep(seen: MergeSituation): MergeStep {
  const tops = seen.active ? [seen.live] : [seen.defined, seen.savedMemory]
  if (tops.some((place) => place.at === 'above')) return refuse('another image lies on top of it')
  const top = tops.find((place) => place.at === 'overlay')
  if (top !== undefined) return seen.active ? mergeLive(top) : mergeOffline(seen, top)
  return leaveBehind(seen)
}

function mergeLive(place: DiskPlace & { at: 'overlay' }): MergeStep {
  if (place.job !== undefined) {
    if (!place.job.ours) return refuse('another block job copies this disk')
    return { step: place.job.ready ? 'pivot' : 'await-commit' }
  }
  return place.onBase ? { step: 'start-commit' } : refuse('what lies beneath it is not the image it was put on')
}

function mergeOffline(seen: MergeSituation, place: DiskPlace & { at: 'overlay' }): MergeStep {
  if (seen.overlay === 'missing') return refuse('the VM needs it, but it is gone')
  if (seen.overlay === 'held') return refuse('some program has it open')
  if (!place.onBase) return refuse('what lies beneath it is not the image it was put on')
  if (!seen.committed && seen.overlay !== 'unused') return { step: 'commit-offline' }
  // The memory image first: it is what the next start uses.
  return { step: seen.savedMemory.at === 'overlay' ? 'repoint-memory' : 'repoint-definition' }
}

/** A mark from before, on an overlay that is in use again, proves nothing about what it has caught since. */
export const isMarkVoid = (seen: MergeSituation): boolean => {
  const tops = seen.active ? [seen.live] : [seen.defined, seen.savedMemory]
  return !seen.committed && tops.some((place) => place.at === 'overlay' && place.job === undefined)
}

/** No VM runs on it, or would. */
function leaveBehind(seen: MergeSituation): MergeStep {
  const place = seen.active ? seen.live : seen.defined
  if (place.at === 'elsewhere') return refuse(`the disk lies on ${place.location || 'nothing'}`)
  const nothingToLose = seen.overlay === 'missing' || seen.overlay === 'unused' || merged(seen)
  if (!nothingToLose) {
    if (seen.overlay === 'held') return refuse('some program has it open, though the VM is not known to use it')
    if (seen.overlay === 'unreadable') return refuse('it can not be read')
    return refuse('it holds data, but the VM is not on it; nobody knows whether that data is in its disk')
  }
  if (seen.active && seen.defined.at === 'overlay') return { step: 'repoint-definition' }
  return { step: seen.overlay === 'missing' ? 'done' : 'delete-overlay' }
}

const merged = (seen: MergeSituation): boolean => seen.markedMerged && seen.overlay === 'used'
