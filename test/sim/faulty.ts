/**
 * Makes ports fail on command: every call of every wrapped port is numbered, and at one number something happens.
 * A failing case is reproduced by its number and its fault; `plan.calls` says what the number was.
 */
import { type ErrorCode, failure } from '../../src/errors.ts'

/** Before the deed is done, or after it was done but before the caller learns of it. */
export type Moment = 'before' | 'after'
/**
 * `fail` rejects. `hang` never settles. `kill` never settles, nor does any later call: the process is dead, while the
 * world lives on. `cancel` aborts `plan.signal` and goes on.
 */
export type Fault = `${'fail' | 'hang' | 'kill' | 'cancel'} ${Moment}`

export const allFaults: readonly Fault[] = (['fail', 'hang', 'kill', 'cancel'] as const).flatMap((kind) => [
  `${kind} before` as const,
  `${kind} after` as const,
])

export interface FaultAt {
  /** Number of the call, from 1. */
  readonly at: number
  readonly fault: Fault
  /** What a failing call rejects with; a refusal of the hypervisor or the guest unless told. */
  readonly error?: (call: string) => Error
}

/** One incarnation of the code under test: give the same plan to every port it gets. Without a fault it only records. */
export class FaultPlan {
  /** "n port.method(arguments)" in the order of the calls. */
  readonly calls: string[] = []
  readonly #fault: FaultAt | undefined
  readonly #killed = Promise.withResolvers<string>()
  readonly #controller = new AbortController()
  #dead = false
  #hit: string | undefined

  constructor(fault?: FaultAt) {
    this.#fault = fault
  }

  /** Resolves with the call at which the incarnation was killed; never without a kill. */
  get killed(): Promise<string> {
    return this.#killed.promise
  }

  get isDead(): boolean {
    return this.#dead
  }

  /** The call at which the fault happened. */
  get hit(): string | undefined {
    return this.#hit
  }

  /** Aborted by a `cancel`. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Ends the incarnation from outside. */
  kill(why = 'killed by the test'): void {
    this.#dead = true
    this.#killed.resolve(why)
  }

  /** Numbers a call, and answers with what to do at a moment of it. */
  enter(call: string): (moment: Moment) => Promise<void> {
    if (this.#dead) return forever
    const number = this.calls.push(`${this.calls.length + 1} ${call}`)
    return async (moment) => {
      if (this.#dead) await forever()
      const fault = this.#fault
      if (fault === undefined || fault.at !== number || !fault.fault.endsWith(moment)) return
      this.#hit = this.calls[number - 1]
      if (fault.fault.startsWith('fail')) throw (fault.error ?? injectedError)(call)
      if (fault.fault.startsWith('cancel')) this.#controller.abort()
      if (fault.fault.startsWith('kill')) this.kill(this.#hit)
      if (fault.fault.startsWith('kill') || fault.fault.startsWith('hang')) await forever()
    }
  }
}

const forever = (): Promise<never> => Promise.withResolvers<never>().promise

function injectedError(call: string): Error {
  return failure(codeFor(call), { vm: call, call, way: call, reason: 'injected' })
}

function codeFor(call: string): ErrorCode {
  if (call.startsWith('recovery.')) return 'RECOVERY_FAILED'
  return /(guest|requestor)\(/.test(call) ? 'GUEST_REFUSED' : 'HYPERVISOR_REFUSED'
}

/** Methods that answer at once: they can neither fail nor hang, but what they answer is a port as well. */
const synchronous: ReadonlySet<string> = new Set(['guest', 'requestor', 'done', 'timer', 'now', 'monotonicMs'])

/** Methods that answer with an async iterable, not with a promise. */
const iterables: ReadonlySet<string> = new Set(['extents', 'changes'])

/**
 * The same port, with the plan's fault in it. Ports it hands out (guests, open disks, connections) are wrapped too,
 * and so is what it hands out as an async iterable. `name` stands before the method in `plan.calls`.
 */
export function faulty<T extends object>(port: T, plan: FaultPlan, name = port.constructor.name): T {
  return new Proxy(port, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target)
      if (typeof value !== 'function') return value
      const method = property === Symbol.asyncDispose ? 'dispose' : String(property)
      return (...args: unknown[]) => {
        const call = `${name}.${method}(${args.map(summary).join(', ')})`
        const run = (): unknown => Reflect.apply(value, target, args)
        if (synchronous.has(method)) return plan.isDead && method === 'done' ? undefined : wrapped(run(), plan, call)
        if (iterables.has(method) || property === Symbol.asyncIterator) return iterated(run, plan, call)
        return called(run, plan, call)
      }
    },
  })
}

async function called(run: () => unknown, plan: FaultPlan, call: string): Promise<unknown> {
  const at = plan.enter(call)
  await at('before')
  try {
    return wrapped(await run(), plan, call)
  } finally {
    await at('after')
  }
}

async function* iterated(run: () => unknown, plan: FaultPlan, call: string): AsyncGenerator<unknown> {
  const at = plan.enter(call)
  await at('before')
  for await (const item of run() as AsyncIterable<unknown>) {
    if (plan.isDead) await forever()
    yield item
  }
  await at('after')
}

/** Data goes through as it is; things with methods become faulty themselves. */
function wrapped(result: unknown, plan: FaultPlan, call: string): unknown {
  if (typeof result !== 'object' || result === null || !isPort(result)) return result
  return faulty(result, plan, call)
}

const dataTypes = [Array, Map, Set, Date, Error, ArrayBuffer, Promise, AbortSignal]

function isPort(thing: object): boolean {
  if (ArrayBuffer.isView(thing) || dataTypes.some((type) => thing instanceof type)) return false
  if (Symbol.asyncDispose in thing) return true
  const members = [thing, Object.getPrototypeOf(thing)].filter((each) => each !== Object.prototype && each !== null)
  return members.some((each) =>
    Object.entries(Object.getOwnPropertyDescriptors(each)).some(
      ([key, { value }]) => key !== 'constructor' && typeof value === 'function',
    ),
  )
}

function summary(argument: unknown): string {
  if (ArrayBuffer.isView(argument)) return `${argument.byteLength} bytes`
  if (argument instanceof AbortSignal) return 'signal'
  if (typeof argument === 'function') return 'function'
  const text = typeof argument === 'string' ? argument : (JSON.stringify(argument) ?? String(argument))
  return text.length > 60 ? `${text.slice(0, 57).replace(/\s+/g, ' ')}...` : text.replace(/\s+/g, ' ')
}
