/** Bitmap: a set of small numbers in one bit each. Memory is taken with the first number. */
export class Bitmap {
  readonly #length: number
  #bytes: Uint8Array | undefined
  #size = 0

  /** For numbers from 0 to `length` - 1. */
  constructor(length: number) {
    this.#length = length
  }

  /** How many numbers are in it. */
  get size(): number {
    return this.#size
  }

  has(number: number): boolean {
    return (((this.#bytes?.[number >>> 3] ?? 0) >> (number & 7)) & 1) === 1
  }

  add(number: number): void {
    if (this.has(number)) return
    this.#bytes ??= new Uint8Array(Math.ceil(this.#length / 8))
    this.#bytes[number >>> 3] = (this.#bytes[number >>> 3] ?? 0) | (1 << (number & 7))
    this.#size += 1
  }

  delete(number: number): void {
    if (!this.has(number) || this.#bytes === undefined) return
    this.#bytes[number >>> 3] = (this.#bytes[number >>> 3] ?? 0) & ~(1 << (number & 7))
    this.#size -= 1
  }

  /** Whether any of [from, from + count) is in it; both are multiples of 8. */
  hasAny(from: number, count: number): boolean {
    if (this.#bytes === undefined || this.#size === 0) return false
    return this.#bytes.subarray(from >>> 3, (from + count) >>> 3).some((byte) => byte !== 0)
  }
}
