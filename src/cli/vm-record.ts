/**
 * What the VM writer tells about a VM (its plan, or the outcome in a recovery point), read for printing. A recovery point
 * comes from outside and may be of another version: what is missing or odd is left out, nothing here fails.
 */
import * as z from 'zod'
import type { JsonObject } from '../base/cleanup.ts'
import { recoveryWays } from '../vm/auto-recovery.ts'
import { methods } from '../vm/method.ts'
import type { Column } from './output.ts'
import { bytesText, durationText } from './output.ts'

const count = z.number().min(0).optional().catch(undefined)
const text = z.string().catch('?')

const diskShape = z.object({
  target: text,
  location: z.string().optional().catch(undefined),
  format: z.string().optional().catch(undefined),
  provider: z.string().optional().catch(undefined),
  sizeBytes: count,
  readBytes: count,
  storedBytes: count,
  /** Recovery points made before changes were tracked do not tell. */
  how: z.enum(['whole', 'changed', 'compared']).optional().catch(undefined),
  since: z.string().optional().catch(undefined),
  because: z.string().optional().catch(undefined),
})

const recoveryShape = z.object({
  way: text,
  because: z.string().catch(''),
  disks: z.array(z.object({ target: text, because: z.string().catch('') })).catch([]),
})

const conditionShape = z.object({
  name: text,
  met: z.boolean(),
  detail: text,
  /** Recovery points made before conditions told it have none. */
  neededFor: z.array(z.string()).catch([]),
})

/** A VM that a failover cluster looks after. */
const clusterShape = z.object({
  resource: text,
  node: z.string().optional().catch(undefined),
  role: text,
  managed: z.boolean().catch(true),
  failCount: z.number().catch(0),
})

const recordShape = z.object({
  name: text,
  uuid: text,
  power: text,
  /** Of files of the host: where they lie. */
  directory: z.string().optional().catch(undefined),
  method: text,
  consistency: text,
  because: z.string().catch(''),
  reasons: z.array(z.string()).catch([]),
  freezeMs: count,
  pausedMs: count,
  recovery: recoveryShape.optional().catch(undefined),
  conditions: z.array(conditionShape).catch([]),
  disks: z.array(diskShape).catch([]),
  excluded: z.array(z.object({ target: text, reason: text })).catch([]),
  cluster: clusterShape.optional().catch(undefined),
})
export type VmRecord = z.infer<typeof recordShape>
type Disk = z.infer<typeof diskShape>

export const vmRecord = (told: JsonObject): VmRecord => recordShape.parse(told)

const contentShape = z.object({
  vms: z.array(z.looseObject({})).catch([]),
  skewMs: count,
  durationMs: count,
  events: z
    .array(
      z.object({
        atMs: z.number().catch(0),
        event: text,
        writer: z.string().optional(),
        vm: z.string().optional(),
        detail: z.string().optional(),
      }),
    )
    .catch([]),
})

/** What a backup left in its recovery point. */
export function backupContent(content: JsonObject) {
  const { vms, ...rest } = contentShape.parse(content)
  return { ...rest, vms: vms.map((vm) => vmRecord(vm as JsonObject)) }
}

/** Which one it was, in a line: a VM and its state, or files and their directory. */
export const identity = ({ name, uuid, power, directory }: VmRecord): string =>
  directory === undefined ? `${name} (${uuid}) was ${power}` : `${name}: the files of ${directory}`

export const isCalled = (vm: VmRecord, nameOrUuid: string): boolean =>
  vm.name === nameOrUuid || vm.uuid === nameOrUuid.toLowerCase()

/** The method, for a child-snapshot with the way in which its copies are rolled back. */
export const methodText = ({ method, recovery }: VmRecord): string =>
  recovery === undefined ? method : `${method} (${recovery.way})`

/** child-snapshot (in-guest), application consistency. */
export const howText = (vm: VmRecord): string => `${methodText(vm)}, ${vm.consistency} consistency`

export function recoveryLines({ recovery }: VmRecord): string[] {
  if (recovery === undefined) return []
  const { way, because, disks } = recovery
  return [`  auto-recovery ${way}: ${because}`, ...disks.map((disk) => `  rolled back ${disk.target}: ${disk.because}`)]
}

export const backedUpColumns: readonly Column[] = [
  { head: 'NAME' },
  { head: 'METHOD' },
  { head: 'CONSISTENCY' },
  { head: 'FROZEN', align: 'right' },
  { head: 'DISK' },
  { head: 'SIZE', align: 'right' },
  { head: 'READ', align: 'right' },
  { head: 'STORED', align: 'right' },
]

/** One row per disk; the VM stands in the first one. */
export function backedUpRows(vm: VmRecord): string[][] {
  const own = [vm.name, methodText(vm), vm.consistency, standstill(vm)]
  const disks: Partial<Disk>[] = vm.disks.length === 0 ? [{ target: 'none', sizeBytes: 0 }] : vm.disks
  return disks.map(({ target = '', sizeBytes, readBytes, storedBytes }, index) => [
    ...(index === 0 ? own : own.map(() => '')),
    target,
    ...[sizeBytes, readBytes, storedBytes].map((bytes) => (bytes === undefined ? '' : bytesText(bytes))),
  ])
}

/** How long the guest could not write: frozen, or paused as a whole. */
function standstill({ freezeMs = 0, pausedMs = 0 }: VmRecord): string {
  if (pausedMs > 0) return `${durationText(pausedMs)} paused`
  return freezeMs > 0 ? durationText(freezeMs) : '-'
}

/** Never silent (X1): each disk that was left out, and each reason why less was reached than hoped for. */
export function remarks(vm: VmRecord): string[] {
  return [
    ...vm.reasons.map((reason) => `${vm.name}: ${vm.consistency} consistency: ${reason}`),
    ...vm.disks.flatMap((disk) => readWhole(disk).map((line) => `${vm.name}: ${line}`)),
    ...leftOut(vm).map((line) => `${vm.name}: ${line}`),
  ]
}

/** Why a disk was read whole although there was a recovery point to compare it with. */
function readWhole({ target, how, since, because }: Disk): string[] {
  if (how !== 'compared' || because === undefined) return []
  return [`${target} was read whole and compared with ${since ?? 'the last recovery point'}: ${because}`]
}

export const leftOut = ({ excluded }: VmRecord): string[] =>
  excluded.map(({ target, reason }) => `${target} is not backed up: ${reason}`)

/** Disks of a running VM whose changes nobody can track, and what would help. */
export function costlyDisks({ disks, method }: VmRecord): string[] {
  if (method !== 'guest-freeze' && method !== 'checkpoint') return []
  const costly = disks.filter(({ format }) => format !== undefined && format !== 'qcow2')
  if (costly.length === 0) return []
  const named = costly.map(({ target, format }) => `${target} (${format})`).join(', ')
  return [`read whole and compared in every backup: ${named}; as qcow2 only what changed would be read`]
}

/** Grouped by what can not do without them, in the order in which they come. */
export function conditionLines({ conditions }: VmRecord): string[] {
  const groups = Map.groupBy(conditions, ({ neededFor }) => neededForText(neededFor))
  return [...groups].flatMap(([title, members]) => {
    const lines = members.map(({ name, met, detail }) => `  ${met ? 'met  ' : 'unmet'}  ${name}: ${detail}`)
    return title === '' ? lines : [`  ${title}:`, ...lines.map((line) => `  ${line}`)]
  })
}

function neededForText(neededFor: readonly string[]): string {
  if (neededFor.length === 0) return ''
  if (methods.every((method) => neededFor.includes(method))) return 'for any method'
  const isWay = neededFor.every((one) => recoveryWays.some((way) => way === one))
  return `for ${isWay ? 'auto-recovery ' : ''}${neededFor.join(' and ')}`
}

export const sumOf = (disks: readonly Disk[], key: 'sizeBytes' | 'readBytes' | 'storedBytes'): number =>
  disks.reduce((sum, disk) => sum + (disk[key] ?? 0), 0)

/** Which resource of a cluster it is, and how the cluster sees it. */
export function clusterLines({ cluster }: VmRecord): string[] {
  if (cluster === undefined) return []
  const { resource, node, role, managed, failCount } = cluster
  const where = node === undefined ? role.toLowerCase() : `on ${node}`
  const failures = failCount === 0 ? '' : `, ${failCount} failures counted`
  return [`cluster resource ${resource}, ${where}${managed ? '' : ', not managed'}${failures}`]
}
