/**
 * Calls to the file system as a port that fails on command: inside `withFaultyFiles` every call of node:fs/promises that
 * changes a name is numbered by the plan, and a process that is dead changes nothing any more.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import { createRequire, syncBuiltinESMExports } from 'node:module'
import { basename } from 'node:path'
import type { FaultPlan } from '../sim/faulty.ts'

const numbered = ['rename', 'rm', 'symlink', 'link', 'chmod', 'chown'] as const
/** Numbered when they create something. */
const opening = 'open'

const incarnation = new AsyncLocalStorage<FaultPlan>()

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
      if (plan === undefined || (name === opening && !creates(args[1]))) return original(...args)
      const at = plan.enter(`files.${name}(${args.filter(isText).map(shortly).join(', ')})`)
      await at('before')
      try {
        return await original(...args)
      } finally {
        await at('after')
      }
    }
  }
  syncBuiltinESMExports()
}

const isText = (argument: unknown): argument is string => typeof argument === 'string'
const creates = (flags: unknown) => flags === 'wx' || (typeof flags === 'number' && (flags & 0o100) !== 0)
const shortly = (path: string) => basename(path)
