/**
 * Rates as people type them: 50MB, 50MiB, 200mbit, each a second. Bytes have a large B; who means bits says bit.
 */
const bytesOf: Readonly<Record<string, number>> = {
  B: 1,
  kB: 1e3,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  bit: 1 / 8,
  kbit: 1e3 / 8,
  mbit: 1e6 / 8,
  gbit: 1e9 / 8,
  Kbit: 1e3 / 8,
  Mbit: 1e6 / 8,
  Gbit: 1e9 / 8,
}

/** Slower, and a single object of the repository would take longer than any patience. */
const slowestBytes = 64 * 1024
const fastestBytes = 1e12

export type ParsedRate =
  | { readonly ok: true; readonly bytesPerSecond: number }
  /** A sentence that says what is wrong, and how it is written. */
  | { readonly ok: false; readonly reason: string }

/** Bytes per second; whole. */
export function parseRate(text: string): ParsedRate {
  const refuse = (reason: string): ParsedRate => ({ ok: false, reason })
  const [, amount, unit = ''] = /^(\d{1,12}(?:\.\d{1,6})?)\s?([A-Za-z]*)(?:\/s)?$/.exec(text.trim()) ?? []
  if (amount === undefined) return refuse('It must be a number and a unit, as in 50MB, 50MiB or 200mbit (a second).')
  if (unit === '') return refuse(`It needs a unit: ${amount}MB, ${amount}MiB or ${amount}mbit (a second).`)
  const bytes = Object.hasOwn(bytesOf, unit) ? bytesOf[unit] : undefined
  if (bytes === undefined) return refuse(describeUnknown(amount, unit))
  const bytesPerSecond = Math.round(Number(amount) * bytes)
  if (bytesPerSecond < slowestBytes) return refuse('It must be at least 64KiB a second.')
  if (bytesPerSecond > fastestBytes) return refuse('It must be at most 1000GB a second.')
  return { ok: true, bytesPerSecond }
}

function describeUnknown(amount: string, unit: string): string {
  const [, prefix = undefined] = /^([kmg])b(?:ps)?$/i.exec(unit) ?? []
  if (prefix !== undefined) {
    const [bytes, bits] = [`${amount}${prefix.toUpperCase()}B`, `${amount}${prefix.toLowerCase()}bit`]
    return `It may mean bytes or bits: write ${bytes} or ${bits}.`
  }
  return `There is no unit ${unit}: there are kB, MB, GB, KiB, MiB, GiB, kbit, mbit, gbit (a second).`
}
