/**
 * What is asked of a guest before its method is chosen: whether it answers, what it runs, its file systems and, where a
 * snapshot inside it is in question, its volumes. Bounded in time by the ports; silence is a fact, not an error.
 */
import { describeError } from '../base/failure.ts'
import type { GuestDescription } from './guest-requestor.ts'
import type { GuestFileSystem, Hypervisor, VmFacts } from './hypervisor.ts'
import { type BackupPolicy, type GuestFacts, mayUseRequestor } from './method.ts'

export async function askGuest(hypervisor: Hypervisor, facts: VmFacts, policy: BackupPolicy): Promise<GuestFacts> {
  if (facts.power !== 'running') return { answering: false, why: `the VM is ${facts.power}` }
  if (facts.agent !== 'connected') return { answering: false, why: 'no agent is connected' }
  const guest = hypervisor.guest(facts.uuid)
  try {
    await guest.ping()
    const [os, fileSystems] = await Promise.all([guest.osInfo().catch(() => undefined), guest.fileSystems()])
    const told = { answering: true, fileSystems, ...(os === undefined ? {} : { os }) } as const
    if (!mayUseRequestor(policy) || os?.id === 'mswindows') return told
    const unavailable = policy.method === 'auto' ? inVain(fileSystems) : undefined
    const requestor = unavailable === undefined ? await askRequestor(hypervisor, facts) : { unavailable }
    return { ...told, requestor }
  } catch (error) {
    return { answering: false, why: describeError(error) }
  }
}

/** A guest that can have no snapshot of one of its file systems anyway is not asked further: that would run programs in it. */
function inVain(fileSystems: readonly GuestFileSystem[]): string | undefined {
  const bare = fileSystems.find(
    ({ type, device = '' }) => /^(ext[234]|xfs|vfat)$/.test(type) && /^(sd|vd|xvd|hd|nvme)/.test(device),
  )
  if (bare === undefined) return undefined
  return `${bare.type} directly on /dev/${bare.device} (${bare.mountPoint}): no snapshot possible, so the guest was not asked further`
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
