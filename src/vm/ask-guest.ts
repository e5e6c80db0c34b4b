/**
 * What is asked of a guest before its method is chosen: whether it answers, what it runs, its file systems and, where a
 * snapshot inside it is in question, its volumes. Bounded in time by the ports; silence is a fact, not an error.
 */
import { describeError } from '../base/failure.ts'
import type { GuestDescription } from './guest-requestor.ts'
import type { Hypervisor, VmFacts } from './hypervisor.ts'
import { type BackupPolicy, type GuestFacts, mayUseRequestor } from './method.ts'

export async function askGuest(hypervisor: Hypervisor, facts: VmFacts, policy: BackupPolicy): Promise<GuestFacts> {
  if (facts.power !== 'running') return { answering: false, why: `the VM is ${facts.power}` }
  if (facts.agent !== 'connected') return { answering: false, why: 'no agent is connected' }
  const guest = hypervisor.guest(facts.uuid)
  try {
    await guest.ping()
    const [os, fileSystems] = await Promise.all([guest.osInfo().catch(() => undefined), guest.fileSystems()])
    const told = { answering: true, fileSystems, ...(os === undefined ? {} : { os }) } as const
    const asked = mayUseRequestor(policy) && os?.id !== 'mswindows'
    return asked ? { ...told, requestor: await askRequestor(hypervisor, facts) } : told
  } catch (error) {
    return { answering: false, why: describeError(error) }
  }
}

/** Asking changes nothing in the guest. Refusal is a fact, too. */
async function askRequestor(
  hypervisor: Hypervisor,
  { uuid }: VmFacts,
): Promise<GuestDescription | { readonly unavailable: string }> {
  try {
    return await hypervisor.requestor(uuid).describe()
  } catch (error) {
    return { unavailable: describeError(error) }
  }
}
