/**
 * Calls to the file system as a port that fails on command: inside `withFaultyFiles` every call of node:fs/promises that
 * changes a name is numbered by the plan, and a process that is dead changes nothing any more.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import type { FileHandle } from 'node:fs/promises'
import { createRequire, syncBuiltinESMExports } from 'node:module'
import { basename } from 'node:path'
import type { FaultPlan } from '../sim/faulty.ts'

const numbered = ['rename', 'rm', 'symlink', 'link', 'chmod', 'chown'] as const
/** Numbered when they create something. */
const opening = 'open'

const incarnation = new AsyncLocalStorage<FaultPlan>()
const opened = new WeakMap<FaultPlan, Set<FileHandle>>()

/** Runs `work` with the plan's faults in the file system; other work of this process does not notice. */
export function withFaultyFiles<T>(plan: FaultPlan, work: () => T): T {
  install()
  return incarnation.run(plan, work)
}

type Call = (...args: unknown[]) => Promise<unknown>
let installed = false

function install(): void {
  if (installed) return
  installed = true
  const promises = createRequire(import.meta.url)('node:fs/promises') as Record<string, Call>
  for (const name of [...numbered, opening]) {
    const original = promises[name] as Call
    promises[name] = async (...args) => {
      const plan = incarnation.getStore()
      if (plan === undefined) return original(...args)
      if (name === opening && !creates(args[1])) return remembered(plan, await original(...args))
      const at = plan.enter(`files.${name}(${args.filter(isText).map(shortly).join(', ')})`)
      await at('before')
      try {
        const result = await original(...args)
        return name === opening ? remembered(plan, result) : result
      } finally {
        await at('after')
      }
    }
  }
  syncBuiltinESMExports()
}

function remembered(plan: FaultPlan, handle: unknown): unknown {
  const all = opened.get(plan) ?? new Set()
  opened.set(plan, all.add(handle as FileHandle))
  return handle
}

/** The kernel closes what a dead process had open. */
export async function closeFilesOf(plan: FaultPlan): Promise<void> {
  for (const handle of opened.get(plan) ?? []) if (handle.fd !== -1) await handle.close().catch(() => undefined)
  opened.delete(plan)
}

const isText = (argument: unknown): argument is string => typeof argument === 'string'
const creates = (flags: unknown) => flags === 'wx' || (typeof flags === 'number' && (flags & 0o100) !== 0)
const shortly = (path: string) => basename(path)
