/**
 * Disk images of the simulated host: sparse layers of real bytes, each perhaps lying on another one.
 * What a layer does not hold is read from the layer beneath, and reads as zeros at the bottom.
 */
import type { Extent } from '../../src/disk/block-device.ts'
import { failure } from '../../src/errors.ts'
import type { DiskImage, DiskStorage } from '../../src/vm/hypervisor.ts'
import { WriteWatch } from './sim-bitmaps.ts'

export const clusterBytes = 4096

/** Under this key the simulated host keeps what a storage names. */
export function storageKey(storage: DiskStorage): string {
  if ('file' in storage) return storage.file
  if ('blockDevice' in storage) return storage.blockDevice
  if ('rbd' in storage) return `rbd:${storage.rbd.pool}/${storage.rbd.image}`
  const { socketPath, host, port, exportName } = storage.nbd
  return `nbd:${socketPath ?? `${host}:${port}`}:${exportName}`
}

export const sameImage = (one: DiskImage, other: DiskImage): boolean =>
  one.format === other.format && storageKey(one.storage) === storageKey(other.storage)

/** One image file: the clusters it holds itself. Where it lies is not its own affair: files are renamed. */
export class SimLayer {
  readonly format: DiskImage['format']
  readonly sizeBytes: number
  readonly backing: DiskImage | undefined
  readonly clusters = new Map<number, Uint8Array>()
  readonly watch = new WriteWatch()

  constructor(format: DiskImage['format'], sizeBytes: number, backing?: DiskImage) {
    this.format = format
    this.sizeBytes = sizeBytes
    this.backing = backing
  }

  /** The same content in a layer of its own. Clusters are replaced and never changed, so that both can have them. */
  copy(): SimLayer {
    const copy = new SimLayer(this.format, this.sizeBytes, this.backing)
    for (const [index, cluster] of this.clusters) copy.clusters.set(index, cluster)
    for (const [name, bitmap] of this.watch.bitmaps) copy.watch.bitmaps.set(name, structuredClone(bitmap))
    return copy
  }

  /** What the file occupies on the host; a layer on another one is never free. */
  get allocatedBytes(): number {
    return (this.clusters.size + (this.format === 'raw' ? 0 : 1)) * clusterBytes
  }
}

/** A chain of layers, top first, read as one disk. */
export class SimDisk {
  readonly layers: readonly SimLayer[]
  /** Where the layers lie. */
  readonly keys: readonly string[]
  readonly #reserve: (bytes: number) => void

  /** `reserve` throws when the host has no room for so many bytes more. */
  constructor(chain: ReadonlyMap<string, SimLayer>, reserve: (bytes: number) => void) {
    this.layers = [...chain.values()]
    this.keys = [...chain.keys()]
    this.#reserve = reserve
  }

  get top(): SimLayer {
    const [top] = this.layers
    if (top === undefined) throw new Error('a disk without layers')
    return top
  }

  get sizeBytes(): number {
    return this.top.sizeBytes
  }

  read(offset: number, target: Uint8Array): void {
    this.#check('DISK_READ_FAILED', offset, target.length)
    for (const { index, from, to, at } of pieces(offset, target.length)) {
      const cluster = this.#find(index)
      if (cluster === undefined) target.fill(0, at, at + to - from)
      else target.set(cluster.subarray(from, to), at)
    }
  }

  write(offset: number, data: Uint8Array): void {
    this.#check('DISK_WRITE_FAILED', offset, data.length)
    const affected = [...pieces(offset, data.length)]
    const fresh = affected.filter(({ index }) => !this.top.clusters.has(index))
    this.#reserve(fresh.length * clusterBytes)
    this.top.watch.announce(
      affected.map(({ index }) => index),
      clusterBytes,
    )
    for (const { index, from, to, at } of affected) {
      const cluster = Uint8Array.from(this.#find(index) ?? new Uint8Array(clusterBytes))
      cluster.set(data.subarray(at, at + to - from), from)
      this.top.clusters.set(index, cluster)
    }
  }

  /** Puts what the top layer holds into the one directly beneath, and never further. */
  mergeDown(): void {
    const [top, beneath] = this.layers
    if (top === undefined || beneath === undefined) throw new Error('nothing beneath to merge into')
    this.#reserve([...top.clusters.keys()].filter((index) => !beneath.clusters.has(index)).length * clusterBytes)
    beneath.watch.announce(top.clusters.keys(), clusterBytes)
    for (const [index, cluster] of top.clusters) beneath.clusters.set(index, Uint8Array.from(cluster))
  }

  *extents(offset: number, length: number): Generator<Extent> {
    this.#check('DISK_READ_FAILED', offset, length)
    let open: { offset: number; length: number; data: boolean } | undefined
    for (const { index, from, to, at } of pieces(offset, length)) {
      const data = this.#find(index) !== undefined
      if (open !== undefined && open.data === data) open.length += to - from
      else {
        if (open !== undefined) yield open
        open = { offset: offset + at, length: to - from, data }
      }
    }
    if (open !== undefined) yield open
  }

  bytes(): Uint8Array {
    const all = new Uint8Array(this.sizeBytes)
    this.read(0, all)
    return all
  }

  #find(index: number): Uint8Array | undefined {
    for (const layer of this.layers) {
      const cluster = layer.clusters.get(index)
      if (cluster !== undefined) return cluster
    }
    return undefined
  }

  #check(code: 'DISK_READ_FAILED' | 'DISK_WRITE_FAILED', offset: number, length: number): void {
    if (offset < 0 || !Number.isSafeInteger(offset) || offset + length > this.sizeBytes)
      throw failure(code, { disk: this.keys[0] ?? '', offset, reason: 'beyond the end of the disk' })
  }
}

/** Cuts a byte range at cluster borders: cluster, range inside it, position inside the caller's buffer. */
function* pieces(offset: number, length: number) {
  for (let at = 0; at < length; ) {
    const index = Math.floor((offset + at) / clusterBytes)
    const from = (offset + at) % clusterBytes
    const to = Math.min(clusterBytes, from + length - at)
    yield { index, from, to, at }
    at += to - from
  }
}
