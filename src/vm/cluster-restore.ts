/**
 * The restore of a VM that a cluster looks after, in its own place (C2): its resource is taken offline by the cluster, the
 * configuration goes to the file that the resource names, and the resource gets its former target role back. The VM is never
 * registered here: the cluster starts it from its file. Undo, newest first: the files that were here come back, with the
 * resource offline; then the target role.
 */
import { existsSync } from 'node:fs'
import { chmod, chown, open, rename, rm, stat, symlink } from 'node:fs/promises'
import type { Json, UndoStep } from '../base/cleanup.ts'
import { failure } from '../errors.ts'
import type { RestoreSession } from '../vss/writer.ts'
import { type Cluster, type ClusterFacts, placeText } from './cluster.ts'
import { holdResource } from './cluster-hold.ts'
import type { Hypervisor } from './hypervisor.ts'
import { unconnectedNetwork } from './restore-networks.ts'
import type { VmRestorePlan } from './restore-plan.ts'

/** A guest that is deaf to the power button is given its agent's time, and then cut off. */
const stopLimitMs = 15 * 60_000
const startLimitMs = 10 * 60_000

/** What is different for a VM of a cluster. Pure. `token`: as of the asides of the plan. */
export function clusterRestorePlan(plan: VmRestorePlan, cluster: ClusterFacts, token: string): VmRestorePlan {
  const { former } = plan
  const { resource, configPath, managed, node, here } = cluster
  const obstacles = [...plan.obstacles]
  if (!managed)
    obstacles.push(`the cluster does not manage ${resource}: it would not stop it; let it manage it again first`)
  if (node !== undefined && !here)
    obstacles.push(`${plan.name} is ${placeText(cluster)}: restore it there, or move it here`)
  if (former !== undefined && node === undefined && former.power !== 'off')
    obstacles.push(`${plan.name} runs here although its cluster says that ${resource} runs nowhere`)
  const asides = [...plan.asides, { path: configPath, aside: `${configPath}.umbra-aside-${token}` }]
  const offline = `take the cluster resource ${resource} offline`
  const others = plan.steps.filter((step) => !/^((turn off and )?remove the VM|register|start|leave) /.test(step))
  const writes = others.findLastIndex((step) => step.startsWith('write ')) + 1
  const handed = [`write the configuration to ${configPath}`, `give ${resource} its former target role back`]
  const steps = [...others.slice(0, writes), offline, ...others.slice(writes), ...handed]
  return { ...plan, cluster, asides, steps, obstacles }
}

export interface ClusterRestore {
  readonly plan: VmRestorePlan & { readonly cluster: ClusterFacts }
  readonly cluster: Cluster
  readonly hypervisor: Hypervisor
  hold?: UndoStep | undefined
  takeBack?: UndoStep
}

/** PreRestore: the resource is offline, and every file that makes way lies aside. */
export async function takeOffline(restore: ClusterRestore, { undo, emit }: RestoreSession): Promise<void> {
  const { plan, cluster, hypervisor } = restore
  const { resource } = plan.cluster
  const about = { uuid: plan.uuid, name: plan.name }
  const held = { resource, attribute: 'target-role', set: 'Stopped' } as const
  restore.hold = await holdResource(cluster, undo, about, held, stopLimitMs)
  await requireOffline(cluster, resource)
  const power = await hypervisor.power(plan.uuid)
  if (power !== 'gone' && power !== 'off')
    throw failure('VM_STATE', { vm: plan.name, state: power, reason: `its cluster says that ${resource} is offline` })
  emit({ event: 'VM', vm: plan.name, detail: `${resource} offline` })
  const record = { undo: 'take-back-cluster-restore', vm: plan.uuid, name: plan.name, resource }
  const asides = asidesOf(plan)
  restore.takeBack = await undo.defer({ ...record, places: placesOf(plan, asides) as unknown as Json })
  for (const { path, aside } of asides) if (existsSync(path)) await rename(path, aside)
}

/** PostRestore: the configuration in its file, and the cluster's hand on the VM as it was before. */
export async function handBack(
  restore: ClusterRestore,
  rewritten: string,
  { undo, emit }: RestoreSession,
): Promise<void> {
  const { plan, cluster, hypervisor, hold, takeBack } = restore
  const { resource, configPath } = plan.cluster
  if (plan.needsUnconnected) await hypervisor.ensureIsolatedNetwork(unconnectedNetwork)
  const asides = asidesOf(plan)
  await writeConfiguration(configPath, rewritten, asides.find(({ path }) => path === configPath)?.aside)
  for (const { path, to } of plan.links) await symlink(to, path)
  if (hold !== undefined) {
    const { former } = hold.record
    await cluster.setAttribute(resource, 'target-role', typeof former === 'string' ? former : null)
    await cluster.settled(startLimitMs)
    await requireStarted(cluster, plan)
  }
  emit({ event: 'VM', vm: plan.name, detail: `${resource} handed back` })
  const paths = asides.map(({ aside }) => aside)
  if (takeBack !== undefined) await undo.supersede(takeBack, { undo: 'remove-files', paths })
  if (hold !== undefined) undo.forget(hold)
}

/** The undo step `take-back-cluster-restore`: the former files are back; nothing happens while none was moved. */
export async function takeBackClusterRestore(
  cluster: Cluster,
  { resource, places }: { resource: string; places: readonly { path: string; aside: string | null }[] },
): Promise<void> {
  if (!places.some(({ path, aside }) => existsSync(aside ?? path))) return
  await cluster.setAttribute(resource, 'target-role', 'Stopped')
  await cluster.settled(stopLimitMs)
  await requireOffline(cluster, resource)
  for (const { path, aside } of places) {
    if (aside === null) await rm(path, { force: true })
    else if (existsSync(aside)) await rename(aside, path)
  }
}

/** The memory that the cluster keeps of the former disks would be loaded upon the restored ones. */
function asidesOf({ asides, cluster }: ClusterRestore['plan']): { path: string; aside: string }[] {
  const { memoryPath, configPath } = cluster
  const token = asides.find(({ path }) => path === configPath)?.aside.slice(configPath.length) ?? ''
  return [...asides, ...(memoryPath === undefined ? [] : [{ path: memoryPath, aside: `${memoryPath}${token}` }])]
}

/** Where nothing lies now, nothing may lie afterwards. */
function placesOf({ targets, links }: VmRestorePlan, asides: readonly { path: string; aside: string }[]) {
  const free = [...targets, ...links].filter(({ path }) => !asides.some((one) => one.path === path))
  const kept = asides.map(({ path, aside }) => ({ path, aside: existsSync(path) ? aside : null }))
  return [...free.map(({ path }) => ({ path, aside: null })), ...kept]
}

async function requireOffline(cluster: Cluster, resource: string): Promise<void> {
  const found = (await cluster.vms()).find((vm) => vm.resource === resource)
  if (found?.node === undefined) return
  throw failure('CLUSTER_NOT_ANSWERING', { reason: `${resource} still runs on ${found.node}` })
}

async function requireStarted(cluster: Cluster, { name, cluster: before }: ClusterRestore['plan']): Promise<void> {
  if (before.node === undefined) return // it did not run before either
  const found = (await cluster.vms()).find(({ resource }) => resource === before.resource)
  if (found?.node !== undefined) return
  throw failure('VM_NOT_RESTORED', { vm: name, reason: `its cluster did not start ${before.resource}: see crm_mon` })
}

/** Whole or not at all, with owner and mode of the file that was there. */
async function writeConfiguration(path: string, text: string, former: string | undefined): Promise<void> {
  const unfinished = `${path}.umbra-new`
  await rm(unfinished, { force: true })
  {
    await using file = await open(unfinished, 'wx', 0o600)
    await file.writeFile(text)
    await file.sync()
  }
  const like = former === undefined ? undefined : await stat(former).catch(() => undefined)
  if (like !== undefined) {
    await chown(unfinished, like.uid, like.gid)
    await chmod(unfinished, like.mode & 0o7777)
  }
  await rename(unfinished, path)
}
