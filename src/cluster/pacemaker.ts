/**
 * Pacemaker as the cluster of the VM writer, through its own commands and nothing else: crm_mon, cibadmin and crm_node
 * tell, crm_resource does. A host without these commands, or on which no cluster runs, costs one start of crm_mon.
 * Source: the manual pages of these commands; the resource agent ocf:heartbeat:VirtualDomain.
 */
import { readFile, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'
import type { Cluster, ClusteredVm, HeldAttribute } from '../vm/cluster.ts'
import {
  type ResourceDefinition,
  type ResourceStatus,
  readDefinitions,
  readIdentity,
  readStatus,
} from './pacemaker-xml.ts'

export interface PacemakerOptions {
  /** Runs one of Pacemaker's commands and answers what it printed; with a deadline in ms. */
  readonly run?: (command: string, args: readonly string[], deadlineMs: number) => Promise<string>
  readonly readConfig?: (path: string) => Promise<string>
  readonly clock?: Clock
}

/** A cluster that is well answers within milliseconds; one that is not must not hold up every command. */
const lookMs = 5_000
const changeMs = 30_000
const freshMs = 1_000
const largestConfigBytes = 1024 * 1024

/** What crm_mon says where no cluster runs (its exit status 102), or where we may not ask: then no VM of ours is in it. */
const notRunning = /ENOENT|ended with 102|not connected|connection refused|ended with 4\b|permission denied/i

export function pacemaker(options: PacemakerOptions = {}): Cluster {
  const { clock = systemClock, readConfig = readConfigFile } = options
  const run =
    options.run ?? (async (command, args, deadlineMs) => (await runCommand(command, args, { deadlineMs })).stdout)
  let last: { readonly atMs: number; readonly vms: Promise<readonly ClusteredVm[]> } | undefined

  const ask = async (command: string, args: readonly string[], deadlineMs: number): Promise<string> => {
    try {
      return await run(command, args, deadlineMs)
    } catch (error) {
      throw failure('CLUSTER_NOT_ANSWERING', { reason: describeError(error) }, error)
    }
  }

  const status = async (): Promise<ResourceStatus[]> => {
    try {
      return readStatus(await run('crm_mon', ['--one-shot', '--inactive', '--output-as=xml'], lookMs))
    } catch (error) {
      if (error instanceof Failure && error.code === 'COMMAND_FAILED' && notRunning.test(error.message)) return []
      throw failure('CLUSTER_NOT_ANSWERING', { reason: describeError(error) }, error)
    }
  }

  const definitions = async (): Promise<ResourceDefinition[]> => {
    const told = await ask('cibadmin', ['--query', '--scope=resources'], lookMs)
    try {
      return readDefinitions(told)
    } catch (error) {
      throw failure('CLUSTER_NOT_ANSWERING', { reason: describeError(error) }, error)
    }
  }

  const look = async (): Promise<readonly ClusteredVm[]> => {
    const resources = await status()
    if (resources.length === 0) return []
    const [defined, node] = await Promise.all([definitions(), ask('crm_node', ['--name'], lookMs)])
    const found = resources.map(async (resource) => {
      const parameters = defined.find(({ id }) => id === resource.id)?.parameters ?? {}
      return clusteredVm(resource, parameters, node.trim(), readConfig)
    })
    return (await Promise.all(found)).filter((vm) => vm !== undefined)
  }

  return {
    vms() {
      const nowMs = clock.monotonicMs()
      if (last === undefined || nowMs - last.atMs >= freshMs) last = { atMs: nowMs, vms: look() }
      return last.vms
    },

    async attribute(resource, name) {
      const found = (await definitions()).find(({ id }) => id === resource)
      if (found === undefined) throw failure('CLUSTER_NOT_ANSWERING', { reason: `it has no resource ${resource}` })
      return found.meta[name] ?? null
    },

    async setAttribute(resource: string, name: HeldAttribute, value: string | null) {
      const change =
        value === null ? ['--delete-parameter', name] : ['--set-parameter', name, '--parameter-value', value]
      await ask('crm_resource', ['--resource', resource, '--meta', ...change], changeMs)
      last = undefined
    },

    async settled(limitMs) {
      const seconds = Math.max(1, Math.ceil(limitMs / 1000))
      await ask('crm_resource', ['--wait', `--timeout=${seconds}s`], limitMs + lookMs)
      last = undefined
    },
  }
}

/** Undefined for a resource that names no file to start the VM from. */
async function clusteredVm(
  { id, ...told }: ResourceStatus,
  { config, snapshot }: ResourceDefinition['parameters'],
  thisNode: string,
  readConfig: (path: string) => Promise<string>,
): Promise<ClusteredVm | undefined> {
  if (config === undefined || !config.startsWith('/')) return undefined
  // On another node's storage perhaps: then the file's name has to do.
  const identity = await readConfig(config)
    .then(readIdentity)
    .catch(() => ({ name: basename(config, '.xml') }))
  const memory = snapshot?.startsWith('/') === true ? { memoryPath: join(snapshot, `${identity.name}.state`) } : {}
  return { ...told, ...identity, ...memory, resource: id, here: told.node === thisNode, configPath: config }
}

async function readConfigFile(path: string): Promise<string> {
  const { size, isFile } = await stat(path).then((found) => ({ size: found.size, isFile: found.isFile() }))
  if (!isFile || size > largestConfigBytes) throw new Error(`${path} is no configuration`)
  return readFile(path, 'utf8')
}
