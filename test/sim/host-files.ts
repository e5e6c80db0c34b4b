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

/** Where the files are kept. */
export interface FileTable {
  get(path: string): SimFile | undefined
  set(path: string, file: SimFile): void
  delete(path: string): void
  paths(): string[]
  copy(): FileTable
}

/** A layer is written to, and gets a copy of its own; the other kinds are replaced as a whole. */
export const copyOfFile = (file: SimFile): SimFile => (file instanceof SimLayer ? file.copy() : file)

function memoryFiles(files = new Map<string, SimFile>()): FileTable {
  return {
    get: (path) => files.get(path),
    set: (path, file) => void files.set(path, file),
    delete: (path) => void files.delete(path),
    paths: () => [...files.keys()].sort(),
    copy: () => memoryFiles(new Map([...files].map(([path, file]) => [path, copyOfFile(file)]))),
  }
}

export class HostFiles {
  capacityBytes = Number.POSITIVE_INFINITY
  readonly #files: FileTable

  constructor(files: FileTable = memoryFiles()) {
    this.#files = files
  }

  /** Those that exist for real are the same; all others are copies. */
  copy(): HostFiles {
    const copy = new HostFiles(this.#files.copy())
    copy.capacityBytes = this.capacityBytes
    return copy
  }

  get usedBytes(): number {
    return this.paths().reduce((used, path) => used + sizeOf(this.#files.get(path)), 0)
  }

  has(path: string): boolean {
    return this.#files.get(path) !== undefined
  }

  get(path: string): SimFile | undefined {
    return this.#files.get(path)
  }

  paths(): string[] {
    return this.#files.paths()
  }

  /** Makes or replaces a file; throws NoSpaceError when it does not fit. */
  put(path: string, file: SimFile | Uint8Array): void {
    const content = file instanceof Uint8Array ? { bytes: file } : file
    this.reserve(sizeOf(content) - sizeOf(this.#files.get(path)))
    this.#files.set(path, content)
  }

  remove(path: string): void {
    this.#files.delete(path)
  }

  reserve(bytes: number): void {
    if (bytes > 0 && Number.isFinite(this.capacityBytes) && this.usedBytes + bytes > this.capacityBytes)
      throw new NoSpaceError()
  }

  createImage(image: DiskImage, sizeBytes: number, backing?: DiskImage): SimLayer {
    const key = storageKey(image.storage)
    const layer = new SimLayer(image.format, sizeBytes, backing)
    if (this.has(key)) throw new Error(`${key} exists already`)
    this.put(key, layer)
    return layer
  }

  /** The whole chain beneath an image. The format is taken at its word and never probed. */
  disk(image: DiskImage): SimDisk {
    const chain = new Map<string, SimLayer>()
    for (let next: DiskImage | undefined = image; next !== undefined; ) {
      const key = storageKey(next.storage)
      const file = this.#asLayer(key, next.format)
      const refuse = (reason: string) => failure('DISK_READ_FAILED', { disk: key, offset: 0, reason })
      if (file === undefined) throw refuse('No such file or directory')
      if (!(file instanceof SimLayer)) throw refuse('this is not a disk image')
      if (file.format !== next.format) throw refuse(`this is ${file.format} and not ${next.format}`)
      chain.set(key, file)
      next = file.backing
    }
    return new SimDisk(chain, (bytes) => this.reserve(bytes))
  }

  /** Undefined when a layer is missing. */
  findDisk(image: DiskImage): SimDisk | undefined {
    try {
      return this.disk(image)
    } catch {
      return undefined
    }
  }

  /** Any file of bytes is a raw disk, if somebody says so. */
  #asLayer(key: string, format: DiskImage['format']): SimFile | undefined {
    const file = this.#files.get(key)
    if (file === undefined || !('bytes' in file) || format !== 'raw') return file
    const layer = new SimLayer('raw', file.bytes.length)
    new SimDisk(new Map([[key, layer]]), () => undefined).write(0, file.bytes)
    this.#files.set(key, layer)
    return layer
  }
}

function sizeOf(file: SimFile | undefined): number {
  if (file === undefined) return 0
  if (file instanceof SimLayer) return file.allocatedBytes
  return 'saved' in file ? savedStateBytes : file.bytes.length
}
