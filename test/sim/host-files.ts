/**
 * The file system of the simulated host: files by path, with a capacity that can run out.
 * A file is an image layer, a memory image of a VM, or plain bytes (NVRAM and the like).
 */
import { failure } from '../../src/errors.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import { SimDisk, SimLayer, storageKey } from './sim-disk.ts'
import type { GuestMemory } from './sim-memory.ts'

/** What `save` writes: a VM's memory, and the configuration it ran with. */
export interface SavedState {
  readonly configuration: string
  readonly memory: GuestMemory
}

export type SimFile = SimLayer | { readonly saved: SavedState } | { readonly bytes: Uint8Array }

/** What a memory image takes on the host. */
export const savedStateBytes = 64 * 1024

/** Thrown by a write when the host is full; QEMU pauses the VM then. */
export class NoSpaceError extends Error {
  constructor() {
    super('No space left on device')
    this.name = 'NoSpaceError'
  }
}

export class HostFiles {
  capacityBytes = Number.POSITIVE_INFINITY
  readonly #files = new Map<string, SimFile>()

  get usedBytes(): number {
    let used = 0
    for (const file of this.#files.values()) used += sizeOf(file)
    return used
  }

  has(path: string): boolean {
    return this.#files.has(path)
  }

  get(path: string): SimFile | undefined {
    return this.#files.get(path)
  }

  paths(): string[] {
    return [...this.#files.keys()].sort()
  }

  /** Makes or replaces a file; throws NoSpaceError when it does not fit. */
  put(path: string, file: SimFile | Uint8Array): void {
    const content = file instanceof Uint8Array ? { bytes: file } : file
    const former = this.#files.get(path)
    this.reserve(sizeOf(content) - (former === undefined ? 0 : sizeOf(former)))
    this.#files.set(path, content)
  }

  remove(path: string): void {
    this.#files.delete(path)
  }

  reserve(bytes: number): void {
    if (bytes > 0 && this.usedBytes + bytes > this.capacityBytes) throw new NoSpaceError()
  }

  createImage(image: DiskImage, sizeBytes: number, backing?: DiskImage): SimLayer {
    const layer = new SimLayer(image, sizeBytes, backing)
    if (this.has(layer.key)) throw new Error(`${layer.key} exists already`)
    this.put(layer.key, layer)
    return layer
  }

  /** The whole chain beneath an image. The format is taken at its word and never probed. */
  disk(image: DiskImage): SimDisk {
    const layers: SimLayer[] = []
    for (let next: DiskImage | undefined = image; next !== undefined; next = layers.at(-1)?.backing) {
      const key = storageKey(next.storage)
      const file = this.#files.get(key)
      const refuse = (reason: string) => failure('DISK_READ_FAILED', { disk: key, offset: 0, reason })
      if (file === undefined) throw refuse('No such file or directory')
      if (!(file instanceof SimLayer)) throw refuse('this is not a disk image')
      if (file.image.format !== next.format) throw refuse(`this is ${file.image.format} and not ${next.format}`)
      layers.push(file)
    }
    return new SimDisk(layers, (bytes) => this.reserve(bytes))
  }
}

function sizeOf(file: SimFile): number {
  if (file instanceof SimLayer) return file.allocatedBytes
  return 'saved' in file ? savedStateBytes : file.bytes.length
}
