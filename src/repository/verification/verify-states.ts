/**
 * ChunkStates: what verify knows of each chunk: whether it is to be read, and what is wrong with it.
 */
import { invariant } from '../../base/failure.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'

export class ChunkStates {
  readonly #store: ChunkStore
  readonly #marked: Uint8Array
  readonly #reasons = new Map<number, string>()
  #structure = false

  /** For as long as the chunks keep their numbers. */
  constructor(store: ChunkStore) {
    this.#store = store
    this.#marked = new Uint8Array(Math.ceil(store.known.table.size / 8))
  }

  /** True the first time. A chunk nobody has is damage of whoever needs it. */
  mark(id: Buffer): boolean {
    const { table } = this.#store.known
    const number = table.find(id)
    if (number === -1 || number >>> 3 >= this.#marked.length || !this.#store.known.isKnown(number)) {
      this.#structure = true
      return false
    }
    return this.#mark(number)
  }

  /** Marks every chunk an index names, whether a point needs it or not. */
  markAll(): void {
    const { table } = this.#store.known
    for (let number = 0; number < Math.min(table.size, this.#marked.length * 8); number += 1) {
      if (this.#store.known.isKnown(number)) this.#mark(number)
    }
  }

  #mark(number: number): boolean {
    if (this.isMarked(number)) return false
    this.#marked[number >>> 3] = (this.#marked[number >>> 3] ?? 0) | (1 << (number & 7))
    return true
  }

  isMarked(number: number): boolean {
    return (((this.#marked[number >>> 3] ?? 0) >> (number & 7)) & 1) === 1
  }

  /** The marked chunks of the packs that `wanted` accepts, pack by pack. */
  inPackOrder(wanted: (packNumber: number) => boolean): Uint32Array {
    const { table, names } = this.#store.known
    const starts = new Uint32Array(names.size + 1)
    const each = (use: (number: number, packNumber: number) => void) => {
      for (let number = 0; number < table.size; number += 1) {
        if (this.isMarked(number) && wanted(table.packNumber(number))) use(number, table.packNumber(number))
      }
    }
    each((_, packNumber) => {
      starts[packNumber + 1] = (starts[packNumber + 1] ?? 0) + 1
    })
    for (let pack = 1; pack < starts.length; pack += 1) starts[pack] = (starts[pack] ?? 0) + (starts[pack - 1] ?? 0)
    const numbers = new Uint32Array(starts.at(-1) ?? 0)
    each((number, packNumber) => {
      const at = starts[packNumber] ?? 0
      invariant(at < numbers.length, 'a chunk too many')
      numbers[at] = number
      starts[packNumber] = at + 1
    })
    return numbers
  }

  /** `reason` undefined: a sound copy was found after all. */
  setReason(number: number, reason: string | undefined): void {
    if (reason === undefined) this.#reasons.delete(number)
    else this.#reasons.set(number, reason)
  }

  /** The chunks that are damaged. */
  damaged(): number[] {
    return [...this.#reasons.keys()]
  }

  /** A map can not be read, or names a chunk nobody has. */
  spoilStructure(): void {
    this.#structure = true
  }

  get hasDamage(): boolean {
    return this.#structure || this.#reasons.size > 0 || !this.#store.known.damage.marks.isEmpty
  }

  /** What is wrong with the chunk; undefined when nothing is, or it was not read. */
  reason(id: Buffer): string | undefined {
    const { known } = this.#store
    const number = known.table.find(id)
    if (number === -1 || !known.isKnown(number)) return 'no index names this chunk'
    return this.#reasons.get(number) ?? this.#markedReason(number)
  }

  /** Of a chunk whose only copies were found damaged before. */
  #markedReason(number: number): string | undefined {
    const { marks } = this.#store.known.damage
    if (marks.isEmpty) return undefined
    const pack = this.#store.known.names.key(this.#store.known.table.packNumber(number))
    return marks.packReason(pack) ?? marks.records(pack).get(this.#store.known.table.id(number).toString('hex'))
  }
}
