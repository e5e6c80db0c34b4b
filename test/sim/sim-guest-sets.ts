/**
 * The shadow copies a simulated guest has of its own volumes. As with device-mapper's snapshots, what an area holds lies
 * on the disks, while that it is kept up is only in the guest's memory: whoever restarts the guest loses the set, and its
 * areas stay behind. What lies on a disk when the host puts an overlay on it stays readable there (docs/guest-protocol.md).
 */
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import { clusterBytes, storageKey } from './sim-disk.ts'
import type { SimWorld } from './sim-world.ts'

/** A set that the running guest keeps up. */
export interface GuestSet {
  readonly name: string
  /** Why it can not be relied upon any more. */
  lost?: string
}

/** What the areas of a set hold. */
export interface SetAreas {
  /** By target: how the disk was at the guest's instant. Empty before that. */
  readonly bytes: Map<string, Uint8Array>
  /** False once an area has overflowed. */
  valid: boolean
}

/** What lay on a disk at the host's instant, by the name of the set. */
export interface FrozenSets {
  readonly target: string
  readonly sets: ReadonlyMap<string, { readonly bytes: Uint8Array | undefined; readonly valid: boolean }>
}

/** How much of a disk is not as it was. */
export function changedBytes(before: Uint8Array, now: Uint8Array): number {
  let changed = 0
  for (const _ of changedClusters(before, now)) changed += clusterBytes
  return changed
}

function* changedClusters(before: Uint8Array, now: Uint8Array): Generator<number> {
  for (let at = 0; at < before.length; at += clusterBytes)
    if (Buffer.compare(before.subarray(at, at + clusterBytes), now.subarray(at, at + clusterBytes)) !== 0) yield at
}

/** A copy of a disk, as whoever reads what is on it sees it. */
export interface CopyOnSet {
  readonly image: DiskImage
  /** The disk it is a copy of. */
  readonly target: string
  readonly bytes: Uint8Array
}

/** What the set holds for a copy; throws the reason, in words, when it can not be rolled back. */
export function readSetOn(world: SimWorld, image: DiskImage, set: string): CopyOnSet {
  const frozen = world.files
    .disk(image)
    .keys.map((key) => world.frozenSets.get(key))
    .find((found) => found !== undefined)
  const name = storageKey(image.storage)
  const found = frozen?.sets.get(set)
  if (frozen === undefined || found === undefined) throw new Error(`${name} has no areas of ${set}`)
  if (!found.valid) throw new Error(`an area of ${set} on ${name} has overflowed`)
  if (found.bytes === undefined) throw new Error(`the set ${set} on ${name} has no instant`)
  return { image, target: frozen.target, bytes: found.bytes }
}

/** What has to be written so that the copy is as it was at the guest's instant. */
export function* changesTo(world: SimWorld, { image, bytes }: CopyOnSet): Generator<[number, Uint8Array]> {
  for (const at of changedClusters(bytes, world.imageBytes(image))) yield [at, bytes.subarray(at, at + clusterBytes)]
}
