/**
 * XML elements as records of attributes, for documents.ts: reading with bounds and without entities, writing with
 * every character either carried or refused, and keeping what a reader does not know.
 * Source of the character rules: "Extensible Markup Language (XML) 1.0", sections 2.2, 2.11 and 3.3.3.
 */
import { DOMParser, type Element, type Node, XMLSerializer } from '@xmldom/xmldom'
import type { JsonObject } from '../base/cleanup.ts'
import { describeError } from '../base/failure.ts'
import { failure } from '../errors.ts'

export const ownNamespace = 'urn:umbra:vss'
const ownPrefix = 'umbra:'
/** Metadata of thousands of VMs fits; a document without end does not. */
export const maxDocumentChars = 32 * 1024 * 1024

/** What an element had beyond what its reader took. */
interface Kept {
  readonly attributes: readonly (readonly [name: string, namespace: string | null, value: string])[]
  readonly elements: readonly string[]
  /** Constants that we would write and the document did not have. */
  readonly absent: readonly string[]
  /** The element itself was not there. */
  readonly missing?: true
}

export const missing: Kept = { attributes: [], elements: [], absent: [], missing: true }

/** Values carry what their elements had beyond them, by element name; it survives `{ ...value }`. */
const keptOf = Symbol('kept of the document')

export function invalid(document: string, reason: string, cause?: unknown): Error {
  return failure('VSS_INVALID_XML_DOCUMENT', { document, reason }, cause)
}

/** `value`, remembering what the records that it was read from had beyond it. */
export function keeping<T extends object>(value: T, kept: Readonly<Record<string, Kept | undefined>>): T {
  const known = Object.entries(kept).filter(([, one]) => one !== undefined)
  return known.length === 0 ? value : { ...value, [keptOf]: Object.fromEntries(known) }
}

export class XmlRecord {
  readonly name: string
  readonly #document: string
  readonly #element: Element
  readonly #taken = new Set<Node>()

  private constructor(document: string, element: Element) {
    this.#document = document
    this.#element = element
    this.name = element.localName ?? ''
  }

  /** The root of `xml`. `document` is what failures call it. */
  static parse(xml: string, document: string, root: string, namespace: string): XmlRecord {
    if (xml.length > maxDocumentChars) throw invalid(document, `it has more than ${maxDocumentChars} characters`)
    if (/<!(?!--)/.test(xml)) throw invalid(document, 'it has a document type, entities or CDATA')
    const element = parseXml(xml, document)
    if (element.localName !== root || element.namespaceURI !== namespace) {
      throw invalid(document, `it begins with ${element.localName}, not with ${root} of ${namespace}`)
    }
    return new XmlRecord(document, element)
  }

  text(name: string): string {
    const value = this.optional(name)
    if (value === undefined) throw invalid(this.#document, `${this.name} has no ${name}`)
    return value
  }

  optional(name: string): string | undefined {
    const own = name.startsWith(ownPrefix)
    const attribute = own
      ? this.#element.getAttributeNodeNS(ownNamespace, name.slice(ownPrefix.length))
      : this.#element.getAttributeNode(name)
    if (!attribute) return undefined
    this.#taken.add(attribute)
    refuseUnwritable(this.#document, name, attribute.value)
    return attribute.value
  }

  flag(name: string, fallback?: boolean): boolean {
    const value = fallback === undefined ? this.text(name) : this.optional(name)
    if (value === undefined) return fallback === true
    if (value !== 'yes' && value !== 'no')
      throw invalid(this.#document, `${name} of ${this.name} is neither yes nor no`)
    return value === 'yes'
  }

  word<W extends string>(name: string, words: readonly W[], fallback?: W): W {
    const value = fallback === undefined ? this.text(name) : (this.optional(name) ?? fallback)
    const known = words.find((word) => word === value)
    if (known === undefined) throw invalid(this.#document, `${name} of ${this.name} is none of ${words.join(', ')}`)
    return known
  }

  integer(name: string): number {
    const value = this.text(name)
    const number = Number(value)
    if (!/^\d{1,16}$/.test(value) || !Number.isSafeInteger(number)) {
      throw invalid(this.#document, `${name} of ${this.name} is not a number`)
    }
    return number
  }

  /** An attribute that holds base64 of JSON; `{}` when it is missing. */
  json(name: string): JsonObject {
    const value = this.optional(name)
    if (value === undefined) return {}
    try {
      return decodeJson(value)
    } catch (error) {
      throw invalid(this.#document, `${name} of ${this.name} is not base64 of a JSON object`, error)
    }
  }

  child(name: string): XmlRecord {
    const found = this.children(name)
    if (found.length > 1) throw invalid(this.#document, `${this.name} has more than one ${name}`)
    if (found[0] === undefined) throw invalid(this.#document, `${this.name} has no ${name}`)
    return found[0]
  }

  maybeChild(name: string): XmlRecord | undefined {
    const found = this.children(name)
    if (found.length > 1) throw invalid(this.#document, `${this.name} has more than one ${name}`)
    return found[0]
  }

  children(...names: readonly string[]): XmlRecord[] {
    const found = elementsOf(this.#element).filter((child) => names.includes(this.#nameOf(child)))
    for (const child of found) this.#taken.add(child)
    return found.map((child) => new XmlRecord(this.#document, child))
  }

  /** What nobody took. `constants` are the attributes that we write without reading them. */
  rest(constants: Readonly<Record<string, string>> = {}): Kept | undefined {
    const attributes = [...this.#element.attributes]
      .filter((attribute) => !this.#taken.has(attribute) && !isDeclaration(attribute.name))
      .filter(({ name, value }) => constants[name] !== value)
      .map(({ name, namespaceURI, value }) => [name, namespaceURI, value] as const)
    const elements = elementsOf(this.#element)
      .filter((child) => !this.#taken.has(child))
      .map((child) => serialize(child, this.#document))
    const absent = Object.keys(constants).filter((name) => !isDeclaration(name) && !this.#element.hasAttribute(name))
    return attributes.length + elements.length + absent.length === 0 ? undefined : { attributes, elements, absent }
  }

  /** The name by which our readers ask: plain, or with our prefix; that of a stranger's namespace never matches. */
  #nameOf(child: Element): string {
    const { localName, namespaceURI } = child
    if (namespaceURI === ownNamespace) return `${ownPrefix}${localName}`
    const ours = namespaceURI === null || namespaceURI === '' || namespaceURI === this.#element.namespaceURI
    return ours ? (localName ?? '') : ''
  }
}

export interface ElementParts {
  readonly attributes?: Readonly<Record<string, string | undefined>>
  readonly children?: readonly string[]
  /** The value written; what `keeping` gave it under `name` is written too. */
  readonly of?: object
}

/** One element as text; nothing if the document read had none. Refuses what XML 1.0 can not carry. */
export function writeElement(document: string, name: string, parts: ElementParts): string {
  const kept = (parts.of as { [keptOf]?: Record<string, Kept> } | undefined)?.[keptOf]?.[name]
  if (kept?.missing) return ''
  const attributes = new Map<string, string>()
  for (const [key, value] of Object.entries(parts.attributes ?? {})) {
    if (value !== undefined && !kept?.absent.includes(key)) attributes.set(key, value)
  }
  for (const [index, [key, namespace, value]] of (kept?.attributes ?? []).entries()) {
    const prefixed = namespace !== null && namespace !== '' && !key.startsWith('xml:')
    if (prefixed) attributes.set(`xmlns:kept${index}`, namespace)
    attributes.set(prefixed ? `kept${index}:${key.replace(/^.*:/, '')}` : key, value)
  }
  const written = [...attributes].map(([key, value]) => {
    refuseUnwritable(document, key, value)
    return ` ${key}="${escapeText(value)}"`
  })
  const children = [...(parts.children ?? []), ...(kept?.elements ?? [])].filter((child) => child !== '')
  if (children.length === 0) return `<${name}${written.join('')}/>`
  return `<${name}${written.join('')}>\n${children.join('\n')}\n</${name}>`
}

export function encodeJson(value: JsonObject): string {
  const bytes = new TextEncoder().encode(JSON.stringify(value))
  let binary = ''
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192))
  return btoa(binary)
}

function decodeJson(text: string): JsonObject {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
  const value: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error('it is not an object')
  return value as JsonObject
}

function parseXml(xml: string, document: string): Element {
  const onError = (level: string, message: string) => {
    if (level === 'warning' && message.startsWith('Unicode replacement character')) return // U+FFFD is a character too
    throw new Error(message)
  }
  try {
    const root = new DOMParser({ onError }).parseFromString(xml, 'application/xml').documentElement
    if (root !== null) return root
  } catch (error) {
    throw invalid(document, describeError(error).slice(0, 200), error)
  }
  throw invalid(document, 'it is empty')
}

function serialize(element: Element, document: string): string {
  try {
    return new XMLSerializer().serializeToString(element)
  } catch (error) {
    throw invalid(document, `${element.localName} can not be kept`, error) // nested beyond all measure
  }
}

function elementsOf(parent: Element): Element[] {
  return [...parent.childNodes].filter((node): node is Element => node.nodeType === 1)
}

function isDeclaration(attribute: string): boolean {
  return attribute === 'xmlns' || attribute.startsWith('xmlns:')
}

function refuseUnwritable(document: string, name: string, value: string): void {
  const found = /[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/u.exec(value)
  if (found === null) return
  const code = (found[0].codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, '0')
  throw invalid(document, `${name} contains U+${code}, which XML can not carry`)
}

/** Also the characters that a parser would make a space or a line feed. */
function escapeText(value: string): string {
  return value.replace(
    /[<>&"\t\n\r\u007f-\u009f\u2028\u2029]/g,
    (character) => `&#x${character.charCodeAt(0).toString(16).toUpperCase()};`,
  )
}
