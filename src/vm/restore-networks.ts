/**
 * Networks of a restored VM: "If the virtual switches that the VM was connected to when it was backed up still exist, new
 * ports are created and connected to the VM." Gone ones are mapped as the user says, else isolated, never guessed. MAC
 * addresses are kept in place and new for a copy, unless the user wants the old ones and nobody here has them.
 */
import type { RestoreRequest } from '../vss/restore-plan.ts'
import type { ConfigurationEdit, NetworkFacts, NicConnection } from './hypervisor.ts'
import type { RestoreSurroundings, StoredVm } from './restore-plan.ts'

/** The network for interfaces whose own network is gone: isolated, so that a VM is never connected by accident. */
export const unconnectedNetwork = 'umbra-unconnected'

export interface NicPlan {
  edits: NonNullable<ConfigurationEdit['nics']>
  steps: string[]
  obstacles: string[]
  needsUnconnected: boolean
}

type Nic = StoredVm['nics'][number]

/** What becomes of one interface: it stays as it is, is put on something else, or is put aside, with the words for it. */
interface Connection {
  readonly connect?: NicConnection
  readonly step?: string
  readonly warning?: string
}

export function planNics(
  vm: StoredVm,
  request: RestoreRequest,
  copy: boolean,
  here: RestoreSurroundings,
  warnings: string[],
): NicPlan {
  const edits: Record<string, { mac?: string; connect?: NicConnection }> = {}
  const plan: NicPlan = { edits, steps: [], obstacles: [], needsUnconnected: false }
  for (const nic of vm.nics) {
    const mac = copy && request.keepMac !== true ? here.newMac() : undefined
    const address = mac ?? nic.mac
    const { connect, step, warning } = connectionOf(nic, address, request, copy, here)
    edits[nic.mac] = { ...(mac === undefined ? {} : { mac }), ...(connect === undefined ? {} : { connect }) }
    if (connect !== undefined && 'network' in connect && connect.network === unconnectedNetwork)
      plan.needsUnconnected = true
    if (step !== undefined) plan.steps.push(step)
    if (warning !== undefined) warnings.push(warning)
    const users = (here.macUsers?.(address) ?? []).filter(({ uuid }) => copy || uuid !== vm.uuid)
    const whose = `the VM ${users.map(({ name }) => name).join(', ')} has the MAC address ${address}`
    if (users.length > 0 && copy) plan.obstacles.push(`${whose}: restore without --keep-mac`)
    else if (users.length > 0) warnings.push(`${whose} too: both on one network disturb each other`)
  }
  if (plan.needsUnconnected) plan.steps.push(`make the isolated network ${unconnectedNetwork} unless there is one`)
  return plan
}

/** Interfaces that libvirt connects by itself, without anything of the host's that has a name. */
const selfContained = ['user']

function connectionOf(
  nic: Nic,
  address: string,
  { networks }: RestoreRequest,
  copy: boolean,
  here: RestoreSurroundings,
): Connection {
  const mapped = networks[nic.source ?? ''] ?? networks[nic.mac]
  if (mapped !== undefined) {
    const found = here.networks.find(({ name }) => name === mapped)
    return found === undefined ? aside(`${nic.type} ${mapped} does not exist here`, address) : joined(found, address)
  }
  if (nic.type === 'network' || nic.type === 'bridge') return sameNetwork(nic, address, here)
  if (nic.type === 'direct') {
    const { source = '' } = nic
    const devices = here.fit?.host.netDevices
    if (devices !== undefined && !devices.includes(source))
      return aside(`the network device ${source} does not exist here`, address)
    return { step: `connect ${address} to the network device ${source}` }
  }
  if (selfContained.includes(nic.type)) return { step: `connect ${address} as before (${nic.type})` }
  const what = `the interface ${address} (${nic.type}) uses a device or socket of the host that is one VM's alone`
  return copy ? aside(what, address) : { warning: `${what}: it is kept, and must be there when the VM starts` }
}

function sameNetwork(nic: Nic, address: string, here: RestoreSurroundings): Connection {
  const found = here.networks.find(({ name, kind }) => name === nic.source && kind === nic.type)
  if (found === undefined) {
    // A bridge of Open vSwitch is none of the kernel's, but it has a network device of its name.
    const isDevice = nic.type === 'bridge' && here.fit?.host.netDevices.includes(nic.source ?? '') === true
    if (isDevice) return { step: `connect ${address} to bridge ${nic.source}` }
    return aside(`${nic.type} ${nic.source} does not exist here`, address)
  }
  const step = `connect ${address} to ${found.kind} ${found.name}`
  return found.active ? { step } : { step, warning: `${found.kind} ${found.name} is not active: start it first` }
}

const joined = (to: NetworkFacts, address: string): Connection => ({
  connect: to.kind === 'bridge' ? { bridge: to.name } : { network: to.name },
  step: `connect ${address} to ${to.kind} ${to.name}`,
})

const aside = (reason: string, address: string): Connection => ({
  connect: { network: unconnectedNetwork },
  step: `connect ${address} to nothing (${unconnectedNetwork})`,
  warning: `${reason}: ${address} is put on the isolated network ${unconnectedNetwork} (see --network)`,
})
