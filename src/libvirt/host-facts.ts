/**
 * What this host has for a VM with given needs (API reference of libvirt, module libvirt-host: virConnectGetCapabilities,
 * virConnectGetDomainCapabilities, virConnectCompareHypervisorCPU; libvirt docs, "Driver capabilities XML format" and
 * "Domain capabilities XML format"). What an older libvirt does not tell is not held against a VM.
 */
import { constants } from 'node:fs'
import { access, readdir } from 'node:fs/promises'
import type { Element } from '@xmldom/xmldom'
import type { HostFacts, MachineNeeds } from '../vm/machine-needs.ts'
import type { LibvirtConnection } from './connection.ts'
import { libvirtCode } from './libvirt-errors.ts'
import { libvirtCodes, procedures } from './protocol.ts'
import { XdrWriter } from './rpc-wire.ts'
import { attribute, child, children, descend, parseXml, text } from './xml-dom.ts'

/** What libvirt accepts as a disk's driver type and QEMU writes: libvirt knows no VHDX. */
const diskFormats = ['raw', 'qcow2', 'vpc', 'vmdk', 'vdi', 'qed']
/** VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE: the reason is told as an error. */
const tellReason = 1

export async function hostFacts(connection: LibvirtConnection, needs: MachineNeeds): Promise<HostFacts> {
  const named = [...needs.bootFiles, ...needs.media.map(({ path }) => path)]
  const nothing: HostFacts = {
    machines: [],
    firmwares: [],
    choosesEfi: false,
    secureBoot: false,
    diskFormats,
    netDevices: await readdir('/sys/class/net').catch(() => []),
    missing: await without(named),
  }
  const own = ownOf(needs, (await connection.call(procedures.connectGetCapabilities)).string())
  if (own === undefined) return nothing
  const isThere = needs.emulator !== undefined && (await exists(needs.emulator, constants.X_OK))
  const emulator = isThere ? (needs.emulator ?? own.emulator) : own.emulator
  const machine = own.machines.includes(needs.machine) || emulator !== own.emulator ? needs.machine : undefined
  const capabilities = await domainCapabilities(connection, needs, emulator, machine)
  if (capabilities === undefined) return { ...nothing, emulator, machines: own.machines }
  const { firmware } = needs
  const firmwares = [
    ...(firmware?.path === undefined ? [] : [firmware.path]),
    ...valuesOf(capabilities, 'os', 'loader'),
  ]
  const missing = await without(firmwares)
  const cpuProblem = await cpuProblemOf(connection, needs, emulator, machine, capabilities)
  const tpm = descend(capabilities, 'devices', 'tpm')
  return {
    ...nothing,
    emulator,
    machines: emulator === own.emulator ? own.machines : [...own.machines, needs.machine],
    firmwares: firmwares.filter((path) => !missing.includes(path)),
    choosesEfi: enumOf(descend(capabilities, 'os'), 'firmware').includes('efi'),
    secureBoot: enumOf(descend(capabilities, 'os', 'loader'), 'secure').includes('yes'),
    ...(tpm === undefined ? {} : { tpmBackends: enumOf(tpm, 'backendModel') }),
    ...(cpuProblem === undefined ? {} : { cpuProblem }),
  }
}

async function exists(path: string, mode: number = constants.F_OK): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  )
}

async function without(paths: readonly string[]): Promise<string[]> {
  const missing: string[] = []
  for (const path of new Set(paths)) if (!(await exists(path))) missing.push(path)
  return missing
}

/** The program and machine types that the hypervisor has for that kind and architecture. */
function ownOf({ kind, architecture }: MachineNeeds, xml: string) {
  const { root } = parseXml(xml, 'capabilities')
  for (const arch of children(root, 'guest').flatMap((guest) => children(guest, 'arch'))) {
    if (attribute(arch, 'name') !== architecture) continue
    const domain = children(arch, 'domain').find((one) => attribute(one, 'type') === kind)
    const emulator = text(child(domain, 'emulator')) ?? text(child(arch, 'emulator'))
    if (domain === undefined || emulator === undefined) continue
    const machines = [...children(arch, 'machine'), ...children(domain, 'machine')].flatMap((machine) => [
      text(machine) ?? '',
      attribute(machine, 'canonical') ?? '',
    ])
    return { emulator, machines: [...new Set(machines.filter((name) => name !== ''))] }
  }
  return undefined
}

const machineArguments = ({ kind, architecture }: MachineNeeds, emulator: string, machine: string | undefined) =>
  new XdrWriter().optionalString(emulator).optionalString(architecture).optionalString(machine).optionalString(kind)

/** Undefined when that program does not know the machine type. */
async function domainCapabilities(
  connection: LibvirtConnection,
  needs: MachineNeeds,
  emulator: string,
  machine: string | undefined,
): Promise<Element | undefined> {
  try {
    const args = machineArguments(needs, emulator, machine || undefined).u32(0)
    const answer = await connection.call(procedures.connectGetDomainCapabilities, args)
    return parseXml(answer.string(), 'domainCapabilities').root
  } catch (error) {
    if (libvirtCode(error) === undefined) throw error
    return undefined
  }
}

const valuesOf = (root: Element, ...names: string[]): string[] =>
  children(descend(root, ...names), 'value').flatMap((value) => text(value) ?? [])

const enumOf = (parent: Element | undefined, name: string): string[] =>
  children(parent, 'enum')
    .filter((one) => attribute(one, 'name') === name)
    .flatMap((one) => children(one, 'value').flatMap((value) => text(value) ?? []))

/** Only what libvirt itself would refuse at the start; an emulated processor can do whatever its model says. */
async function cpuProblemOf(
  connection: LibvirtConnection,
  needs: MachineNeeds,
  emulator: string,
  machine: string | undefined,
  capabilities: Element,
): Promise<string | undefined> {
  if (needs.cpu === undefined) return undefined
  const { root: cpu } = parseXml(needs.cpu, 'cpu')
  if (attribute(cpu, 'check') === 'none') return undefined
  const model = text(child(cpu, 'model')) ?? ''
  const known = children(child(capabilities, 'cpu'), 'mode')
    .filter((mode) => attribute(mode, 'name') === 'custom')
    .flatMap((mode) => children(mode, 'model').map((one) => text(one)))
  if (known.length > 0 && !known.includes(model)) return `it does not know the processor model ${model}`
  if (needs.kind !== 'kvm') return undefined
  try {
    const args = machineArguments(needs, emulator, machine).string(needs.cpu).u32(tellReason)
    const result = (await connection.call(procedures.connectCompareHypervisorCpu, args)).i32()
    return result === 0 ? `its processor has not all features of ${model}` : undefined
  } catch (error) {
    if (libvirtCode(error) === libvirtCodes.cpuIncompatible) return String((error as Error).message)
    if (libvirtCode(error) === undefined) throw error
    return undefined
  }
}
