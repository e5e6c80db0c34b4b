/**
 * A tree of files on a disk with a volatile cache: what every process sees now, and what is on stable storage.
 * The bytes of a file get there by a sync of the file, names by a sync of the folder they stand in, nothing else.
 */

export interface FileNode {
  readonly kind: 'file'
  bytes: Buffer
  durable: Buffer
  /** A sync of it failed: the kernel has dropped what it could not write, and later syncs do not tell. */
  lost: boolean
}

export interface FolderNode {
  readonly kind: 'folder'
  readonly entries: Map<string, TreeNode>
  durable: Map<string, TreeNode>
  /** Since the last sync, in order. */
  pending: NameChange[]
}

export type TreeNode = FileNode | FolderNode

/** A name that was given (to `node`) or taken away. */
export interface NameChange {
  readonly name: string
  readonly node: TreeNode | undefined
  /** Counts all changes of names on the disk, from 1. */
  readonly number: number
}

/** What of the unsynced is there after a power cut. */
export interface Survival {
  readonly name: string
  keepsName(change: NameChange, lastNumber: number): boolean
  /** The bytes of a file that had `bytes` when the power went, and `durable` at its last sync. */
  bytes(durable: Buffer, bytes: Buffer): Buffer
}

const halfOf = (_: Buffer, bytes: Buffer) => bytes.subarray(0, bytes.length >> 1)
const zerosFor = (_: Buffer, bytes: Buffer) => Buffer.alloc(bytes.length)
const garbageFor = (_: Buffer, bytes: Buffer) => Buffer.alloc(bytes.length, 'what lay on the disk before ')

/** Only what was synced: the harshest disk a program may meet. */
export const nothingUnsynced: Survival = {
  name: 'nothing unsynced',
  keepsName: () => false,
  bytes: (durable) => durable,
}

/** As if all had been synced. */
export const everything: Survival = { name: 'everything', keepsName: () => true, bytes: (_, bytes) => bytes }

/** All names, as a journal of metadata keeps them, ahead of the bytes: three things such a file may hold. */
export const namesOnly: readonly Survival[] = [
  { name: 'all names, bytes cut off', keepsName: () => true, bytes: halfOf },
  { name: 'all names, bytes zero', keepsName: () => true, bytes: zerosFor },
  { name: 'all names, bytes garbage', keepsName: () => true, bytes: garbageFor },
]

/** The changes of names up to a moment, as a journal of metadata that was cut there. */
export function namesUpToSome(seed: number): Survival {
  const random = seededRandom(seed)
  const part = random()
  return {
    name: `names in order up to some (seed ${seed})`,
    keepsName: ({ number }, lastNumber) => number <= part * lastNumber,
    bytes: (durable, bytes) => someBytes(random, durable, bytes),
  }
}

/** Any of the changes of names, and for each file any of its fates. */
export function anySubset(seed: number): Survival {
  const random = seededRandom(seed)
  return {
    name: `any subset (seed ${seed})`,
    keepsName: () => random() < 0.5,
    bytes: (durable, bytes) => someBytes(random, durable, bytes),
  }
}

function someBytes(random: () => number, durable: Buffer, bytes: Buffer): Buffer {
  const fates = [() => durable, () => bytes, halfOf, zerosFor, garbageFor]
  return (fates[Math.floor(random() * fates.length)] ?? halfOf)(durable, bytes)
}

/** Mulberry32: the same numbers in [0, 1) for the same seed. */
export function seededRandom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

export const emptyFolder = (): FolderNode => ({ kind: 'folder', entries: new Map(), durable: new Map(), pending: [] })

/** Names and folders of one disk. */
export class UnsyncedTree {
  readonly root: FolderNode
  #changes = 0

  constructor(root: FolderNode = emptyFolder()) {
    this.root = root
  }

  setName(folder: FolderNode, name: string, node: TreeNode | undefined): void {
    if (node === undefined) folder.entries.delete(name)
    else folder.entries.set(name, node)
    this.#changes += 1
    folder.pending.push({ name, node, number: this.#changes })
  }

  syncFolder(folder: FolderNode): void {
    folder.durable = new Map(folder.entries)
    folder.pending = []
  }

  /** The disk as it is found when the power is back; this one stays as it is. */
  afterPowerCut(survival: Survival): UnsyncedTree {
    const copies = new Map<TreeNode, TreeNode>()
    const copyOf = (node: TreeNode): TreeNode => {
      const copy = copies.get(node) ?? (node.kind === 'file' ? fileAfter(node, survival) : folderAfter(node))
      copies.set(node, copy)
      return copy
    }
    const folderAfter = (folder: FolderNode): FolderNode => {
      const names = new Map(folder.durable)
      for (const change of folder.pending) {
        if (!survival.keepsName(change, this.#changes)) continue
        if (change.node === undefined) names.delete(change.name)
        else names.set(change.name, change.node)
      }
      const entries = new Map([...names].map(([name, node]) => [name, copyOf(node)]))
      return { kind: 'folder', entries, durable: new Map(entries), pending: [] }
    }
    return new UnsyncedTree(folderAfter(this.root))
  }
}

function fileAfter(file: FileNode, survival: Survival): FileNode {
  const bytes = file.durable === file.bytes ? file.bytes : survival.bytes(file.durable, file.bytes)
  return { kind: 'file', bytes, durable: bytes, lost: false }
}
