/**
 * Pulls disks of a VM out of what lies beneath them (API reference of libvirt, virDomainBlockPull), and tells as whom VMs
 * run (virConnectGetCapabilities, secmodel dac).
 */
import type { LibvirtConnection } from './connection.ts'
import type { DomainCalls } from './domain-calls.ts'
import { blockJobAbortFlags, procedures, pullBlockJob } from './protocol.ts'
import { child, children, parseXml, text } from './xml-dom.ts'

export async function beginPull(domains: DomainCalls, uuid: string, target: string): Promise<void> {
  if ((await pullProgress(domains, uuid, target)) === undefined) await domains.blockPull(uuid, target)
}

export async function pullProgress(
  domains: DomainCalls,
  uuid: string,
  target: string,
): Promise<{ doneBytes: number; totalBytes: number } | undefined> {
  if (!(await domains.isActive(uuid))) return undefined
  const job = await domains.blockJob(uuid, target).catch(async (error: unknown) => {
    if (await domains.isActive(uuid)) throw error
    return undefined
  })
  return job?.type === pullBlockJob ? { doneBytes: job.doneBytes, totalBytes: job.totalBytes } : undefined
}

export async function endPull(domains: DomainCalls, uuid: string, target: string): Promise<void> {
  if ((await pullProgress(domains, uuid, target)) === undefined) return
  try {
    await domains.blockJobAbort(uuid, target, blockJobAbortFlags.async)
  } catch (error) {
    if ((await pullProgress(domains, uuid, target)) !== undefined) throw error
  }
}

export async function vmOwner(connection: LibvirtConnection): Promise<{ uid: number; gid: number } | undefined> {
  const { root } = parseXml((await connection.call(procedures.connectGetCapabilities)).string(), 'capabilities')
  return ownerIn(root)
}

/** The user of plain QEMU; the same as of KVM. */
export function ownerIn(root: ReturnType<typeof parseXml>['root']): { uid: number; gid: number } | undefined {
  const model = children(child(root, 'host'), 'secmodel').find((one) => text(child(one, 'model')) === 'dac')
  const found = /^\+(\d{1,10}):\+(\d{1,10})$/.exec(text(child(model, 'baselabel')) ?? '')
  return found === null ? undefined : { uid: Number(found[1]), gid: Number(found[2]) }
}
