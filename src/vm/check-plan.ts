/**
 * What a boot check will do: a pure function of what was stored and what the user said. Every VM gets another name, UUID
 * and MACs, throw-away overlays above its served disks, and one network that all of them share and that leads nowhere.
 */
import { basename, join } from 'node:path'
import type { CheckExport, CheckPlace, CheckPlan, CheckRequest, Probe } from '../vss/boot-check.ts'
import type { ComponentRef } from '../vss/components.ts'
import type { FileOwner } from '../vss/restore-plan.ts'
import { removableMedium } from './exclusion.ts'
import type { ConfigurationEdit } from './hypervisor.ts'
import type { StoredVm } from './restore-plan.ts'

/** Names of VMs and networks that a check made. */
export const checkName = /^umbra-check-[0-9a-f]{8}(-|$)/

/** A VM out of a recovery point, read. */
export interface CheckableVm {
  readonly component: ComponentRef
  readonly vm: StoredVm
  readonly configuration: string
  readonly documents: Readonly<Record<string, Uint8Array>>
}

export interface CheckOverlay {
  readonly path: string
  readonly exportName: string
  readonly sizeBytes: number
}

export interface CheckFile {
  readonly path: string
  readonly content: Uint8Array
  readonly owner: FileOwner
}

/** One VM, as it will be made. */
export interface CheckedVm {
  readonly component: ComponentRef
  /** The original's name. */
  readonly caption: string
  readonly name: string
  readonly uuid: string
  readonly configuration: string
  readonly edit: ConfigurationEdit
  readonly overlays: readonly CheckOverlay[]
  /** Firmware variables and TPM state. */
  readonly files: readonly CheckFile[]
  /** Outside of the check's own directory, ends with the UUID. */
  readonly tpmDirectory?: string
  readonly warnings: readonly string[]
}

export interface VmCheckPlan extends CheckPlan {
  readonly vms: readonly CheckedVm[]
  readonly network: string
  /** Three numbers; only where a probe has to reach the guests from this host. */
  readonly subnet?: string
  readonly socketPath: string
  readonly probes: readonly Probe[]
  readonly timeoutMs: number
}

/** What is made up for a check. */
export interface NewIdentities {
  readonly newUuid: () => string
  readonly newMac: () => string
  /** From 0 up to, not including, the number. */
  readonly choose: (below: number) => number
}

export function planVmCheck(
  stored: readonly CheckableVm[],
  request: CheckRequest,
  place: CheckPlace,
  make: NewIdentities,
): VmCheckPlan {
  const network = `umbra-check-${place.token}`
  const unknown = request.order.filter((name) => !stored.some((one) => isCalled(one, name)))
  const obstacles = unknown.map((name) => `--order: ${name} is not among what is checked`)
  if (stored.length === 0) obstacles.push('there is no VM to start')
  const exports: CheckExport[] = []
  const vms = inOrder(stored, request.order).map((one) => {
    if (one.vm.disks.length === 0) obstacles.push(`${one.vm.name}: the recovery point has none of its disks`)
    const disks = one.vm.disks.map(({ target, sizeBytes }) => {
      const exportName = `${exports.length}-${target}`
      exports.push({ name: exportName, component: one.component, stream: `disks/${target}` })
      return { target, sizeBytes, exportName, path: join(place.directory, `${exportName}.qcow2`) }
    })
    return planVm(one, disks, request, place, network, make)
  })
  const needsAddresses = request.probes.some(({ kind }) => kind === 'tcp' || kind === 'http')
  return {
    vms,
    network,
    ...(needsAddresses ? { subnet: subnetOf(make.choose) } : {}),
    socketPath: place.socketPath,
    probes: request.probes,
    timeoutMs: request.timeoutMs,
    captions: vms.map(({ caption }) => caption),
    exports,
    steps: tell(vms, network, request),
    warnings: vms.flatMap(({ caption, warnings }) => warnings.map((warning) => `${caption}: ${warning}`)),
    obstacles,
  }
}

const isCalled = ({ vm }: CheckableVm, name: string): boolean => vm.name === name || vm.uuid === name.toLowerCase()

/** Those that were named, in that order; then the others as they come. */
function inOrder(stored: readonly CheckableVm[], order: readonly string[]): CheckableVm[] {
  const first = order.flatMap((name) => stored.filter((one) => isCalled(one, name)))
  return [...new Set([...first, ...stored])]
}

/** Of RFC 2544 (benchmarks): no network that anybody is connected to. */
const subnetOf = (choose: NewIdentities['choose']): string => `198.${18 + choose(2)}.${choose(256)}`

type PlannedDisk = CheckOverlay & { readonly target: string }

function planVm(
  { component, vm, configuration, documents }: CheckableVm,
  disks: readonly PlannedDisk[],
  { memoryBytes }: CheckRequest,
  { directory, socketPath }: CheckPlace,
  network: string,
  { newUuid, newMac }: NewIdentities,
): CheckedVm {
  const uuid = newUuid()
  const nvram = join(directory, `${uuid}_VARS.fd`)
  const places = vm.hostFiles.map(({ role, path, ...file }) => {
    return { ...file, path: role === 'nvram' ? nvram : placeOfTpm(path, vm.uuid, uuid) }
  })
  const files = places.flatMap(({ document, path, owner }) => {
    const content = documents[document]
    return content === undefined || path === undefined ? [] : [{ content, owner, path }]
  })
  const tpm = files.find(({ path }) => path !== nvram)?.path
  const isolation = {
    network,
    keptDisks: disks.map(({ target }) => target),
    ...(memoryBytes === undefined ? {} : { memoryKiB: Math.floor(memoryBytes / 1024) }),
  }
  const edit = {
    name: `${network}-${vm.name}`,
    uuid,
    separateFrom: { name: vm.name, uuid: vm.uuid },
    disks: Object.fromEntries(disks.map(({ target, path, exportName }) => [target, onServed(path, exportName)])),
    nics: Object.fromEntries(vm.nics.map(({ mac }) => [mac, { mac: newMac() }])),
    nvram, // also where none was stored: never the original's
    isolation,
  }
  /** The server is this very process: there is nobody to wait for. */
  function onServed(file: string, exportName: string) {
    return { file, format: 'qcow2', backing: { socketPath, exportName, reconnectDelaySeconds: 1 } }
  }
  return {
    component,
    caption: vm.name,
    name: edit.name,
    uuid,
    configuration,
    edit,
    overlays: disks.map(({ path, exportName, sizeBytes }) => ({ path, exportName, sizeBytes })),
    files,
    ...(tpm === undefined ? {} : { tpmDirectory: tpm.slice(0, tpm.indexOf(uuid) + uuid.length) }),
    warnings: [
      ...warningsOf(vm),
      ...(places.every(({ path }) => path !== undefined)
        ? []
        : ['its TPM is a new one: the state can not be placed here']),
    ],
  }
}

/**
 * libvirt keeps the state of a VM's TPM in a directory called by its UUID. What does not lie in one is not written at all:
 * the path comes out of a recovery point, and could be the original's own.
 */
function placeOfTpm(path: string, from: string, to: string): string | undefined {
  const isInSuch = path.includes(`/swtpm/${from}/`) && !path.split('/').includes('..')
  return isInSuch ? path.replace(`/swtpm/${from}/`, `/swtpm/${to}/`) : undefined
}

function warningsOf({ excluded, memoryBytes }: StoredVm): string[] {
  return [
    ...excluded
      .filter(({ reason }) => reason !== removableMedium)
      .map(({ target, reason }) => `it starts without ${target}, which was not backed up (${reason})`),
    ...(memoryBytes === undefined ? [] : ['its memory is left out: it starts from its disks, as after a power cut']),
  ]
}

function tell(vms: readonly CheckedVm[], network: string, { probes, timeoutMs }: CheckRequest): string[] {
  const seconds = Math.round(timeoutMs / 1000)
  const asked = probes.map(probeText).join(', ')
  return [
    `make the isolated network ${network}`,
    ...vms.flatMap(({ caption, name, overlays }) => [
      `start ${caption} as ${name} on throw-away overlays (${overlays.map(({ path }) => basename(path)).join(', ')})`,
      `wait for its guest agent and ask: ${asked}; at most ${seconds} s`,
    ]),
    'remove all of it and keep the verdicts',
  ]
}

/** As it is typed. */
export function probeText(probe: Probe): string {
  if (probe.kind === 'run') return `run=${probe.command}`
  if (probe.kind === 'tcp') return `tcp=${probe.port}`
  return probe.kind === 'http' ? `http=${probe.port}${probe.path}` : 'agent'
}
