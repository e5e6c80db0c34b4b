/**
 * What Pacemaker's tools print (crm_mon --output-as=xml, cibadmin --query --scope=resources), read as something that comes
 * from outside: bounded, strict, and what is not understood is left out. Source: "Pacemaker Explained", the XML schemas
 * of crm_mon and of the CIB.
 */
import { attribute, children, parseXml } from '../libvirt/xml-dom.ts'

/** A cluster has hundreds. */
const mostResources = 10_000
/** Pacemaker's INFINITY. */
const infinity = 1_000_000

/** The state of one resource that is a VM. */
export interface ResourceStatus {
  readonly id: string
  readonly role: string
  readonly managed: boolean
  /** Node on which it is active; undefined when on none. */
  readonly node?: string
  readonly failCount: number
}

/** What was configured for one resource. */
export interface ResourceDefinition {
  readonly id: string
  readonly parameters: Readonly<Record<string, string>>
  readonly meta: Readonly<Record<string, string>>
}

const virtualDomain = /^ocf::?[\w.-]+:VirtualDomain$/
const readableId = /^[^\s-][^\s]{0,255}$/

type Element = ReturnType<typeof parseXml>['root']

/** At any depth: a resource may stand in a group. */
function all(root: Element, name: string): Element[] {
  const found = [...root.getElementsByTagName(name)]
  return found.slice(0, mostResources)
}

export function readStatus(xml: string): ResourceStatus[] {
  const { root } = parseXml(xml, 'pacemaker-result', 'the cluster')
  const failCounts = new Map<string, number>()
  for (const history of all(root, 'resource_history')) {
    const id = attribute(history, 'id') ?? ''
    failCounts.set(id, (failCounts.get(id) ?? 0) + countOf(attribute(history, 'fail-count')))
  }
  return all(root, 'resource').flatMap((resource): ResourceStatus[] => {
    const id = attribute(resource, 'id')
    if (id === undefined || !readableId.test(id) || attribute(resource, 'orphaned') === 'true') return []
    if (!virtualDomain.test(attribute(resource, 'resource_agent') ?? '')) return []
    const node = children(resource, 'node').map((one) => attribute(one, 'name'))[0]
    return [
      {
        id,
        role: attribute(resource, 'role') ?? 'Unknown',
        managed: attribute(resource, 'managed') !== 'false',
        failCount: failCounts.get(id) ?? 0,
        ...(node === undefined ? {} : { node }),
      },
    ]
  })
}

function countOf(text: string | undefined): number {
  if (text === undefined) return 0
  if (text === 'INFINITY') return infinity
  const count = Number(text)
  return Number.isSafeInteger(count) && count >= 0 ? Math.min(count, infinity) : 0
}

/** With what a resource has from its template. */
export function readDefinitions(xml: string): ResourceDefinition[] {
  const { root } = parseXml(xml, 'resources', 'the cluster')
  const templates = new Map(all(root, 'template').map((template) => [attribute(template, 'id') ?? '', template]))
  return all(root, 'primitive').flatMap((primitive): ResourceDefinition[] => {
    const id = attribute(primitive, 'id')
    if (id === undefined || !readableId.test(id)) return []
    const template = templates.get(attribute(primitive, 'template') ?? '')
    const parameters = { ...pairsOf(template, 'instance_attributes'), ...pairsOf(primitive, 'instance_attributes') }
    return [{ id, parameters, meta: pairsOf(primitive, 'meta_attributes') }]
  })
}

function pairsOf(resource: Element | undefined, set: string): Record<string, string> {
  const pairs = children(resource, set).flatMap((attributes) => children(attributes, 'nvpair'))
  const entries = pairs.map((pair) => [attribute(pair, 'name') ?? '', attribute(pair, 'value') ?? ''] as const)
  return Object.fromEntries(entries.filter(([name]) => name !== '' && name !== '__proto__'))
}

/** Name and UUID of the VM that a configuration file describes; throws when it is none. */
export function readIdentity(xml: string): { name: string; uuid?: string } {
  const { root } = parseXml(xml, 'domain', 'the cluster')
  const [name, uuid] = ['name', 'uuid'].map((each) => children(root, each)[0]?.textContent?.trim())
  if (name === undefined || name === '') throw new Error('it names no VM')
  return uuid === undefined || uuid === '' ? { name } : { name, uuid: uuid.toLowerCase() }
}
