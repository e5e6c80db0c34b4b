/**
 * LVM's metadata is a text: nested sections of `name = value`. This reads it into a tree that remembers where everything
 * stands, so that a change cuts out exactly what it means and leaves every other byte.
 * Source: lvm.conf(5) for the syntax, lvm2's lib/format_text for what is written. Kept as latin1: one character, one byte.
 */

export type Scalar = string | number
export type Value = Scalar | readonly Scalar[]

/** `begin` is where the name stands, `end` is behind the value or the closing brace. */
export interface Entry {
  readonly begin: number
  readonly end: number
  readonly valueBegin: number
  readonly content: Value | Section
}
export type Section = ReadonlyMap<string, Entry>

/** The reason why a text is not LVM metadata. Callers name the disk. */
export class LvmTextError extends Error {}

const deepest = 8
const wordEnds = new Set([...' \t\r\n#={}[]",'])

export const isSection = (content: Value | Section): content is Section => content instanceof Map

export function parseLvmText(text: string): Section {
  return new Parser(text).section(0)
}

/** The tree as plain objects, for a shape to check. */
export function plainOf(section: Section): Record<string, unknown> {
  return Object.fromEntries(
    [...section].map(([name, { content }]) => [name, isSection(content) ? plainOf(content) : content]),
  )
}

class Parser {
  readonly #text: string
  #at = 0

  constructor(text: string) {
    this.#text = text
  }

  section(depth: number): Section {
    if (depth > deepest) throw new LvmTextError('its metadata is nested too deeply')
    const entries = new Map<string, Entry>()
    for (;;) {
      this.#skipBlank()
      const begin = this.#at
      if (this.#take('}')) {
        if (depth === 0) throw new LvmTextError('its metadata has a brace too many')
        return entries
      }
      if (begin === this.#text.length) {
        if (depth > 0) throw new LvmTextError('its metadata ends early')
        return entries
      }
      const name = this.#word()
      // Such a name would not become a property of a plain object.
      if (entries.has(name) || name === '__proto__') throw new LvmTextError(`its metadata has a second ${name}`)
      this.#skipBlank()
      const isSectionHere = this.#take('{')
      if (!isSectionHere) this.#expect('=')
      this.#skipBlank()
      const valueBegin = this.#at
      const content = isSectionHere ? this.section(depth + 1) : this.#value()
      entries.set(name, { begin, valueBegin, end: this.#at, content })
    }
  }

  #value(): Value {
    if (!this.#take('[')) return this.#scalar()
    const list: Scalar[] = []
    for (;;) {
      this.#skipBlank()
      if (this.#take(']')) return list
      if (list.length > 0) this.#expect(',')
      this.#skipBlank()
      if (list.length > 0 && this.#take(']')) return list
      list.push(this.#scalar())
    }
  }

  #scalar(): Scalar {
    if (this.#take('"')) return this.#quoted()
    const word = this.#word()
    if (!/^[-+]?\d{1,32}(\.\d{1,32})?$/.test(word)) throw new LvmTextError('its metadata has a value that is none')
    return Number(word)
  }

  #quoted(): string {
    let text = ''
    for (let from = this.#at; ; this.#at++) {
      const letter = this.#text[this.#at]
      if (letter === undefined) throw new LvmTextError('its metadata ends within a string')
      if (letter !== '"' && letter !== '\\') continue
      text += this.#text.slice(from, this.#at)
      if (letter === '"') {
        this.#at++
        return text
      }
      this.#at++ // what follows a backslash stands for itself
      from = this.#at
    }
  }

  #word(): string {
    const begin = this.#at
    while (this.#at < this.#text.length && !wordEnds.has(this.#text[this.#at] as string)) this.#at++
    if (this.#at === begin || this.#at - begin > 1024) throw new LvmTextError('its metadata is no LVM metadata')
    return this.#text.slice(begin, this.#at)
  }

  #skipBlank(): void {
    for (; this.#at < this.#text.length; this.#at++) {
      const letter = this.#text[this.#at] as string
      if (letter === '#') {
        const lineEnd = this.#text.indexOf('\n', this.#at)
        this.#at = lineEnd === -1 ? this.#text.length - 1 : lineEnd
      } else if (!' \t\r\n'.includes(letter)) return
    }
  }

  #take(letter: string): boolean {
    if (this.#text[this.#at] !== letter) return false
    this.#at++
    return true
  }

  #expect(letter: string): void {
    if (!this.#take(letter)) throw new LvmTextError(`its metadata lacks a ${letter}`)
  }
}
