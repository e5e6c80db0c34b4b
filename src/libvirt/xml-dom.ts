/**
 * Reading and editing XML documents of libvirt with @xmldom/xmldom: a bounded, strict parse that refuses document
 * types and entities, and the few steps through a tree that the domain files need. What is not edited stays as it is,
 * comments, namespaces and padding included; only quotes and entity spelling may change.
 */
import { DOMParser, type Document, type Element, type Node, XMLSerializer } from '@xmldom/xmldom'
import { describeError } from '../base/failure.ts'
import { failure } from '../errors.ts'

const mostBytes = 4 * 1024 * 1024
/** Deeper than any document of libvirt; bounds the recursion of whoever walks the tree. */
const mostLevels = 200

export interface XmlDocument {
  readonly document: Document
  readonly root: Element
}

/** `vm` names the VM in failures, as far as it is known. */
export function parseXml(text: string, rootName: string, vm = 'the VM'): XmlDocument {
  const refuse = (reason: string, cause?: unknown) => failure('VM_CONFIGURATION_INVALID', { vm, reason }, cause)
  if (Buffer.byteLength(text) > mostBytes) throw refuse(`it is longer than ${mostBytes} bytes`)
  if (/<!(DOCTYPE|ENTITY)/i.test(text)) throw refuse('it has a document type')
  if (nesting(text) > mostLevels) throw refuse(`it is nested deeper than ${mostLevels} levels`)
  const document = parse(text, refuse)
  const root = document.documentElement
  if (root === null || root.localName !== rootName) throw refuse(`it is not a <${rootName}> document`)
  return { document, root }
}

function parse(text: string, refuse: (reason: string, cause?: unknown) => Error): Document {
  const complaints: string[] = []
  const onError = (level: string, message: string) => {
    if (level !== 'warning') complaints.push(message)
  }
  try {
    const document = new DOMParser({ onError }).parseFromString(text, 'text/xml')
    if (complaints[0] !== undefined) throw refuse(complaints[0])
    return document
  } catch (error) {
    throw error instanceof Error && complaints[0] === undefined
      ? refuse(describeError(error), error)
      : refuse(complaints[0] ?? 'it is no XML')
  }
}

/** How deep start tags without end are nested at most; never less than the truth, so that it can serve as a bound. */
function nesting(text: string): number {
  let level = 0
  let deepest = 0
  for (const tag of text.matchAll(/<(\/?)[A-Za-z_][^<>]*?(\/?)>/g)) {
    if (tag[1] === '/') level = Math.max(0, level - 1)
    else if (tag[2] !== '/') level += 1
    deepest = Math.max(deepest, level)
  }
  return deepest
}

export const serializeXml = ({ document }: XmlDocument): string => new XMLSerializer().serializeToString(document)

const isElement = (node: Node): node is Element => node.nodeType === 1

/** The element children, of whatever namespace. */
export const elements = (parent: Element | undefined): Element[] => [...(parent?.childNodes ?? [])].filter(isElement)

/** The element children of that name that belong to libvirt, not to a foreign namespace. */
export function children(parent: Element | undefined, name: string): Element[] {
  return elements(parent).filter((node) => node.localName === name && !node.prefix)
}

export const child = (parent: Element | undefined, name: string): Element | undefined => children(parent, name)[0]

/** Follows child names from an element; undefined as soon as one is missing. */
export const descend = (from: Element, ...names: string[]): Element | undefined =>
  names.reduce<Element | undefined>(child, from)

/** The attribute's value; undefined when it is missing or empty. */
export const attribute = (element: Element | undefined, name: string): string | undefined =>
  element?.getAttribute(name) || undefined

/** The text inside, trimmed; undefined when there is none. */
export const text = (element: Element | undefined): string | undefined => element?.textContent?.trim() || undefined

/** Removes elements together with the white space before them. */
export function remove(...elements: (Element | undefined)[]): void {
  for (const element of elements) {
    const before = element?.previousSibling
    if (before?.nodeType === 3 && before.nodeValue?.trim() === '') before.parentNode?.removeChild(before)
    element?.parentNode?.removeChild(element)
  }
}

/** The child of that name; made when it is missing, before `next` or as the last. */
export function ensureChild(parent: Element, name: string, next?: Element): Element {
  const known = child(parent, name)
  if (known !== undefined) return known
  const made = createElement(parent, name)
  parent.insertBefore(made, next ?? null)
  return made
}

export function createElement(nearby: Element, name: string, attributes: Record<string, string> = {}): Element {
  const document = nearby.ownerDocument as Document
  const made = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  return made
}

/** Text for hand-written XML. */
export const escapeXml = (value: string): string =>
  value.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
