/**
 * Hooks at the ports of a session: something of the test's happens around a call, and everything else goes through.
 */
import type { Repository } from '../../src/repository/repository.ts'
import type { Hypervisor } from '../../src/vm/hypervisor.ts'

/** Takes the place of a call; `call` makes it. */
export type Hook = (call: () => Promise<unknown>, args: readonly unknown[]) => unknown
export type Hooks = Readonly<Record<string, Hook>>

/** The same port with hooks around the methods named. */
export function around<T extends object>(port: T, hooks: Hooks): T {
  return new Proxy(port, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target)
      if (typeof value !== 'function') return value
      const hook = typeof property === 'string' ? hooks[property] : undefined
      // No bind: V8 takes no bound function for a disposer.
      if (hook === undefined) return (...args: unknown[]) => Reflect.apply(value, target, args)
      return (...args: unknown[]) => hook(() => Reflect.apply(value, target, args), args)
    },
  })
}

/** Hooks around what is asked of the guests of a hypervisor. */
export function aroundGuests(hypervisor: Hypervisor, hooks: Hooks): Hypervisor {
  return around(hypervisor, { guest: (_call, [uuid]) => around(hypervisor.guest(String(uuid)), hooks) })
}

/** The same around what is asked of the integration services in the guests. */
export function aroundRequestors(hypervisor: Hypervisor, hooks: Hooks): Hypervisor {
  return around(hypervisor, { requestor: (_call, [uuid]) => around(hypervisor.requestor(String(uuid)), hooks) })
}

/** Before that write (from 0) of a chunk or some of its blocks into the repository, `happens` is waited for; once. */
export function duringTransfer(repository: Repository, happens: () => Promise<unknown>, chunk = 0): Repository {
  let writes = 0
  const write: Hook = async (call) => {
    if (writes++ === chunk) await happens()
    return call()
  }
  const openStream: Hook = async (call) => around((await call()) as object, { writeChunk: write, writeBlocks: write })
  return around(repository, { beginPoint: async (call) => around((await call()) as object, { openStream }) })
}
