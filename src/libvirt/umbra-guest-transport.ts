/**
 * How a request reaches umbra-guest inside a guest: by the agent's exec, the script travelling along, or by the service of
 * the package umbra-guest, through a FIFO and an answer file (docs/guest-protocol.md, docs/umbra-guest.md).
 */
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { systemClock } from '../base/clock.ts'
import { packageDirectory } from '../base/own-programs.ts'
import { failure } from '../errors.ts'
import type { GuestExecResult } from '../vm/hypervisor.ts'
import type { GuestAgent } from './guest-agent.ts'
import { isFailure } from './libvirt-errors.ts'

export type GuestVerb = 'describe' | 'prepare' | 'freeze' | 'commit' | 'thaw' | 'status' | 'release' | 'revert'

export interface GuestRequest {
  readonly verb: GuestVerb
  readonly args: readonly string[]
  readonly limitMs: number
}

export interface GuestAnswer {
  readonly exitCode: number
  readonly stdout: string
  /** The last line on standard error, as the guest wrote it. */
  readonly reason: string
}

export interface GuestTransport {
  readonly via: 'exec' | 'package'
  /** Rejects with GUEST_NOT_RESPONDING when the limit has passed; the request may still be carried out then. */
  run(request: GuestRequest): Promise<GuestAnswer>
  /** Waits for requests that were given up, no longer than `limitMs`. */
  settle(limitMs: number): Promise<void>
}

const shell = '/bin/sh'
const copyInGuest = '/run/umbra-guest/umbra-guest'
/** Puts the script, its standard input, where freeze and commit find it: a memory of its own, which no /run is `noexec` for. */
const putAndRun = `
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
place=\${0%/*}
umask 077
mkdir -p -m 700 "$place" || exit 1
grep -q " $place tmpfs " /proc/mounts ||
  mount -t tmpfs -o mode=700,exec,nosuid,nodev umbra-guest "$place" || exit 1
cat >"$0.new" && mv "$0.new" "$0" || exit 1
exec ${shell} "$0" "$@" </dev/null`

/** Where the project keeps the guest's side. */
export const guestScripts = join(packageDirectory, 'guest')

interface Program {
  readonly args: readonly string[]
  readonly input?: string
}

/** The scripts are read here and not inside the hold: freeze, commit and thaw run the guest's copy. */
async function programOf({ verb, args }: GuestRequest, directory: string): Promise<Program> {
  const script = (name: string) => readFile(join(directory, name), 'utf8')
  switch (verb) {
    case 'revert':
      return { args: ['-s', '--', ...args], input: await script('umbra-revert') }
    case 'describe':
    case 'release':
      return { args: ['-s', '--', verb, ...args], input: await script('umbra-guest') }
    case 'prepare':
      return { args: ['-c', putAndRun, copyInGuest, verb, ...args], input: await script('umbra-guest') }
    default:
      return { args: [copyInGuest, verb, ...args] }
  }
}

export class ExecTransport implements GuestTransport {
  readonly via = 'exec'
  readonly #agent: GuestAgent
  readonly #directory: string
  /** Process ids whose end was not waited for. */
  readonly #late = new Set<number>()

  constructor(agent: GuestAgent, directory: string) {
    this.#agent = agent
    this.#directory = directory
  }

  async run(request: GuestRequest): Promise<GuestAnswer> {
    const { args, input } = await programOf(request, this.#directory)
    const pid = await this.#agent.start(shell, args, input)
    this.#late.add(pid)
    const result = await this.#agent.ended(pid, `umbra-guest ${request.verb}`, request.limitMs)
    this.#late.delete(pid)
    const reason = lastLine(result.stderr)
    return { exitCode: exitCodeOf(result, input === undefined), stdout: result.stdout, reason }
  }

  async settle(limitMs: number): Promise<void> {
    const giveUpAt = systemClock.monotonicMs() + limitMs
    for (const pid of this.#late) {
      const leftMs = Math.max(0, giveUpAt - systemClock.monotonicMs())
      try {
        await this.#agent.ended(pid, 'umbra-guest', leftMs)
      } catch (error) {
        // Refused: the agent knows no such process any more. Silent: it goes on, or nobody can tell.
        if (!isFailure(error, 'GUEST_REFUSED')) continue
      }
      this.#late.delete(pid)
    }
  }
}

/** The copy is in memory: after a restart of the guest it is gone, and with it every set. */
function exitCodeOf({ exitCode, stderr }: GuestExecResult, ranCopy: boolean): number {
  const noCopy = ranCopy && [2, 126, 127].includes(exitCode) && stderr.includes(copyInGuest)
  return noCopy ? 6 : exitCode
}

const lastLine = (text: string): string => text.trimEnd().split('\n').at(-1) ?? ''

const serviceDirectory = '/run/umbra-guest-service'
const requestFifo = `${serviceDirectory}/request`
/** A line that a pipe takes as a whole (POSIX, PIPE_BUF on Linux). */
const mostLineLength = 4096

export class PackageTransport implements GuestTransport {
  readonly via = 'package'
  readonly #agent: GuestAgent

  constructor(agent: GuestAgent) {
    this.#agent = agent
  }

  /** Whether the service's FIFO can be written to. An empty line asks for nothing. */
  async isInstalled(): Promise<boolean> {
    try {
      await this.#agent.writeFile(requestFifo, 'r+', '\n')
      return true
    } catch (error) {
      if (isFailure(error, 'GUEST_REFUSED')) return false
      throw error
    }
  }

  /** Opened `r+`, a FIFO never keeps the agent waiting for a reader. */
  async run({ verb, args, limitMs }: GuestRequest): Promise<GuestAnswer> {
    const id = randomBytes(8).toString('hex')
    const line = `${[id, verb, ...args].join(' ')}\n`
    if (line.length > mostLineLength) throw this.#refused(verb, 'the request is too long')
    await this.#agent.writeFile(requestFifo, 'r+', line)
    const text = await this.#agent.poll(limitMs, () => this.#reply(id))
    if (text === undefined) {
      const reason = `the service umbra-guest did not answer ${verb} within ${limitMs} ms`
      throw failure('GUEST_NOT_RESPONDING', { vm: this.#agent.vm, reason })
    }
    const answer = /^exit (\d{1,3})\nreason ([^\n]*)\n([\s\S]*)$/.exec(text)
    if (answer === null) throw this.#refused(verb, 'the answer of its service is not understood')
    const [, exitCode, reason = '', stdout = ''] = answer
    return { exitCode: Number(exitCode), stdout, reason }
  }

  /** The service does one thing after the other: what was given up ends before it begins something new. */
  async settle(): Promise<void> {
    return
  }

  async #reply(id: string): Promise<string | undefined> {
    try {
      return await this.#agent.readFile(`${serviceDirectory}/replies/${id}`)
    } catch (error) {
      // Made by rename: it is not there, or it is whole.
      if (isFailure(error, 'GUEST_REFUSED')) return undefined
      throw error
    }
  }

  #refused(verb: GuestVerb, reason: string) {
    return failure('GUEST_REFUSED', { vm: this.#agent.vm, call: `umbra-guest ${verb}`, reason })
  }
}
