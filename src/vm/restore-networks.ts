/**
 * Networks of a restored VM: "If the virtual switches that the VM was connected to when it was backed up still exist, new
 * ports are created and connected to the VM." Gone ones are mapped as the user says, else isolated, never guessed.
 */
import type { RestoreRequest } from '../vss/restore-plan.ts'
import type { ConfigurationEdit, NetworkFacts, NicConnection } from './hypervisor.ts'
import type { RestoreSurroundings, StoredVm } from './restore-plan.ts'

/** The network for interfaces whose own network is gone: isolated, so that a VM is never connected by accident. */
export const unconnectedNetwork = 'umbra-unconnected'

export interface NicPlan {
  edits: NonNullable<ConfigurationEdit['nics']>
  steps: string[]
  needsUnconnected: boolean
}

/** "If the virtual switches that the VM was connected to still exist, new ports are created and connected to the VM." */
export function planNics(
  vm: StoredVm,
  request: RestoreRequest,
  copy: boolean,
  here: RestoreSurroundings,
  warnings: string[],
): NicPlan {
  const edits: Record<string, { mac?: string; connect?: NicConnection }> = {}
  const steps: string[] = []
  let needsUnconnected = false
  for (const nic of vm.nics) {
    const mac = copy ? { mac: here.newMac() } : {}
    const mapped = nic.source === undefined ? undefined : request.networks[nic.source]
    const wanted = mapped ?? nic.source
    const found = here.networks.find(({ name }) => name === wanted)
    if (wanted === undefined) {
      edits[nic.mac] = mac
    } else if (found !== undefined) {
      edits[nic.mac] = mapped === undefined ? mac : { ...mac, connect: connectionTo(found) }
      steps.push(`connect ${mac.mac ?? nic.mac} to ${found.kind} ${found.name}`)
    } else {
      needsUnconnected = true
      edits[nic.mac] = { ...mac, connect: { network: unconnectedNetwork } }
      warnings.push(
        `${nic.type} ${wanted} does not exist here: ${mac.mac ?? nic.mac} is put on the isolated network ${unconnectedNetwork} (see --network)`,
      )
    }
  }
  return { edits, steps, needsUnconnected }
}

const connectionTo = ({ kind, name }: NetworkFacts): NicConnection =>
  kind === 'bridge' ? { bridge: name } : { network: name }
