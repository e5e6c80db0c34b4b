/**
 * The QEMU guest agent of one VM, reached through libvirt (virDomainQemuAgentCommand; QEMU documentation, "QEMU Guest
 * Agent Protocol Reference"). The agent does one thing after the other: an answer to a later command proves that an
 * earlier one, whose answer never came, is not under way any more. Thaw relies on that.
 */
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { z } from 'zod'
import { describeError, Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { GuestExecResult, GuestFileSystem, GuestIntegration, GuestOs } from '../vm/hypervisor.ts'
import type { DomainCalls } from './domain-calls.ts'
import { type DomainDescription, readDomain } from './domain-xml.ts'
import { targetOf } from './guest-disks.ts'
import * as replies from './guest-replies.ts'
import { isFailure, libvirtCode } from './libvirt-errors.ts'
import { libvirtCodes } from './protocol.ts'

/** What of libvirt's calls the agent needs. */
export type GuestChannel = Pick<DomainCalls, 'nameOf' | 'setAgentTimeout' | 'agent' | 'xml' | 'isActive'>

export interface GuestLimits {
  /** How long the guest may take to freeze, hooks included. */
  readonly freezeMs: number
  /** How long thaw goes on trying. */
  readonly thawMs: number
  readonly commandMs: number
  readonly execMs: number
}

const usualLimits: GuestLimits = { freezeMs: 20_000, thawMs: 15_000, commandMs: 5_000, execMs: 60_000 }
const mostReplyBytes = 4 * 1024 * 1024
const mostOutputBytes = 1024 * 1024
/** What is handed to a program or a file of the guest at once. */
const mostInputBytes = 1024 * 1024
const mostPauseMs = 500
/** libvirt first asks the agent for a sign of life, for so long at most. */
const signOfLifeMs = 5_000

const seconds = (ms: number): number => Math.max(1, Math.ceil(ms / 1000))

/** A file system, with what of it is on none of the VM's disks. */
export interface PlacedFileSystem extends GuestFileSystem {
  readonly elsewhere: readonly string[]
}

/** A disk or partition as the guest names it; `target` when it is one of the VM's disks. */
export interface NamedDisk {
  readonly name: string
  readonly target: string | undefined
  readonly serial: string | undefined
  /** Names of what it is made of: a partition of its disk, a mapping of its devices. */
  readonly dependencies: readonly string[]
}

export class GuestAgent implements GuestIntegration {
  readonly #domains: GuestChannel
  readonly #uuid: string
  readonly #limits: GuestLimits
  #boundedSince: Promise<void> | undefined
  /** Freezes whose end is not known: nothing is thawed for good before they have ended. */
  readonly #lostFreezes = new Set<Promise<unknown>>()

  constructor(domains: GuestChannel, uuid: string, limits: Partial<GuestLimits> = {}) {
    this.#domains = domains
    this.#uuid = uuid
    this.#limits = { ...usualLimits, ...limits }
  }

  /** How people call the VM. */
  get vm(): string {
    return this.#domains.nameOf(this.#uuid)
  }

  async ping(): Promise<void> {
    this.#boundedSince = undefined
    await this.#command('guest-ping', replies.anyReply)
  }

  async freeze(): Promise<number> {
    await this.#bound()
    const { freezeMs } = this.#limits
    const freezing = this.#command('guest-fsfreeze-freeze', replies.countReply, { timeoutMs: freezeMs })
    this.#lostFreezes.add(freezing)
    const ended = () => this.#lostFreezes.delete(freezing)
    freezing.then(ended, ended)
    const patience = new AbortController()
    const tooLong = sleep(freezeMs + signOfLifeMs, undefined, { signal: patience.signal }).then(() => {
      throw this.#silent(`it did not freeze within ${freezeMs} ms`)
    })
    try {
      return await Promise.race([freezing, tooLong])
    } finally {
      tooLong.catch(() => undefined)
      patience.abort()
    }
  }

  async thaw(): Promise<number> {
    const giveUpAt = performance.now() + this.#limits.thawMs
    let thawed = 0
    for (;;) {
      const lost = this.#lostFreezes.size
      let trouble: unknown
      try {
        thawed += await this.#command('guest-fsfreeze-thaw', replies.countReply)
        const status = await this.freezeStatus()
        if (status === 'thawed' && lost === 0) return thawed
      } catch (error) {
        if (await this.#isOff(error)) return thawed
        trouble = error
      }
      if (performance.now() > giveUpAt) {
        throw this.#silent(`it could not be thawed within ${this.#limits.thawMs} ms`, trouble)
      }
      await sleep(200)
    }
  }

  freezeStatus(): Promise<'frozen' | 'thawed'> {
    return this.#command('guest-fsfreeze-status', replies.statusReply)
  }

  async fileSystems(): Promise<readonly GuestFileSystem[]> {
    const found = await this.placedFileSystems()
    return found.map(({ elsewhere: _elsewhere, ...fileSystem }) => fileSystem)
  }

  async placedFileSystems(): Promise<readonly PlacedFileSystem[]> {
    const found = await this.#command('guest-get-fsinfo', replies.fileSystemsReply)
    const vm = await this.#description()
    return found.map(({ name, mountpoint, type, disk }) => {
      const placed = disk.map((seen) => ({ seen, target: targetOf(seen, vm) }))
      const targets = new Set(placed.flatMap(({ target }) => target ?? []))
      const elsewhere = placed.flatMap(({ seen, target }) =>
        target === undefined ? [seen.dev ?? 'an unknown disk'] : [],
      )
      const device = name === undefined ? {} : { device: name }
      return { mountPoint: mountpoint, type, ...device, targets: [...targets].sort(), elsewhere }
    })
  }

  /** Every disk and partition in the guest. */
  async disks(): Promise<readonly NamedDisk[]> {
    const found = await this.#command('guest-get-disks', replies.disksReply)
    const vm = await this.#description()
    return found.map(({ name, partition, address, dependencies }) => ({
      name,
      target: address === undefined || partition ? undefined : targetOf(address, vm),
      serial: address?.serial,
      dependencies,
    }))
  }

  /** True when the agent would carry out every one of these commands. */
  async allowed(...commands: readonly string[]): Promise<boolean> {
    const info = await this.#command('guest-info', replies.infoReply)
    const enabled = new Set(info.supported_commands.flatMap(({ name, enabled }) => (enabled ? [name] : [])))
    return commands.every((command) => enabled.has(command))
  }

  async osInfo(): Promise<GuestOs> {
    const os = await this.#command('guest-get-osinfo', replies.osReply)
    return {
      id: os.id ?? 'unknown',
      name: os['pretty-name'] ?? os.name ?? 'unknown',
      version: os['version-id'] ?? os.version ?? '',
    }
  }

  /** A program that takes too long goes on in the guest; the agent can not end it. */
  async exec(
    path: string,
    args: readonly string[],
    { timeoutMs = this.#limits.execMs, input }: { timeoutMs?: number; input?: string } = {},
  ): Promise<GuestExecResult> {
    return await this.ended(await this.start(path, args, input), path, timeoutMs)
  }

  /** Starts a program, `input` being its standard input, and answers with its process id. */
  async start(path: string, args: readonly string[], input?: string): Promise<number> {
    const data = input === undefined ? {} : { 'input-data': this.#bounded('guest-exec', input).toString('base64') }
    const program = { path, arg: args, 'capture-output': true, ...data }
    return (await this.#command('guest-exec', replies.execReply, { args: program })).pid
  }

  /** Waits for a program that was started. The agent tells the end of a program once only. */
  async ended(pid: number, path: string, timeoutMs: number): Promise<GuestExecResult> {
    const result = await this.poll(timeoutMs, async () => {
      const status = await this.#command('guest-exec-status', replies.execStatusReply, { args: { pid } })
      if (!status.exited) return undefined
      return {
        exitCode: status.exitcode ?? 128 + (status.signal ?? 0),
        stdout: output(status['out-data']),
        stderr: output(status['err-data']),
      }
    })
    if (result === undefined) throw this.#silent(`${path} did not end within ${timeoutMs} ms`)
    return result
  }

  /** Asks until there is an answer or no time is left: often at first, as applications may be waiting, then less often. */
  async poll<Value>(timeoutMs: number, ask: () => Promise<Value | undefined>): Promise<Value | undefined> {
    const giveUpAt = performance.now() + timeoutMs
    for (let pauseMs = 5; ; pauseMs = Math.min(pauseMs * 1.5, mostPauseMs)) {
      await sleep(pauseMs)
      const value = await ask()
      if (value !== undefined || performance.now() > giveUpAt) return value
    }
  }

  /** Writes to a file of the guest, opened as `mode` says (fopen); all of it, or it rejects. */
  async writeFile(path: string, mode: 'w' | 'a' | 'r+', text: string): Promise<void> {
    const data = this.#bounded('guest-file-write', text)
    const handle = await this.#command('guest-file-open', replies.handleReply, { args: { path, mode } })
    try {
      const args = { handle, 'buf-b64': data.toString('base64') }
      const { count } = await this.#command('guest-file-write', replies.writeReply, { args })
      if (count !== data.length) throw this.#refused('guest-file-write', `it wrote ${count} of ${data.length} bytes`)
    } finally {
      // What was written reaches the file when it is closed.
      await this.#command('guest-file-close', replies.anyReply, { args: { handle } })
    }
  }

  /** A small file of the guest. */
  async readFile(path: string): Promise<string> {
    const handle = await this.#command('guest-file-open', replies.handleReply, { args: { path, mode: 'r' } })
    try {
      const parts: Buffer[] = []
      for (let bytes = 0; bytes <= mostOutputBytes; ) {
        const args = { handle, count: 65_536 }
        const part = await this.#command('guest-file-read', replies.readReply, { args })
        const data = Buffer.from(part['buf-b64'], 'base64')
        parts.push(data)
        bytes += data.length
        if (part.eof) return Buffer.concat(parts).toString('utf8')
        if (data.length === 0) break
      }
      throw this.#refused('guest-file-read', `${path} is too long or has no end`)
    } finally {
      await this.#command('guest-file-close', replies.anyReply, { args: { handle } })
    }
  }

  async addresses(): Promise<readonly string[]> {
    const interfaces = await this.#command('guest-network-get-interfaces', replies.interfacesReply)
    const told = interfaces.flatMap((one) => one['ip-addresses'].map((address) => address['ip-address']))
    return told.filter((address) => isIP(address) !== 0 && !/^(127\.|169\.254\.|::1$|fe[89ab])/i.test(address))
  }

  async syncClock(): Promise<void> {
    await this.#command('guest-set-time', replies.anyReply, { timeoutMs: 10_000 })
  }

  async #description(): Promise<DomainDescription> {
    return readDomain(await this.#domains.xml(this.#uuid, 0))
  }

  #bounded(call: string, text: string): Buffer {
    const data = Buffer.from(text)
    if (data.length > mostInputBytes) throw this.#refused(call, `more than ${mostInputBytes} bytes at once`)
    return data
  }

  /** Without a response timeout of its own, libvirt waits for this agent for ever, and so does whoever comes next. */
  async #bound(): Promise<void> {
    this.#boundedSince ??= this.#domains.setAgentTimeout(this.#uuid, seconds(this.#limits.freezeMs))
    try {
      await this.#boundedSince
    } catch (error) {
      this.#boundedSince = undefined
      throw this.#translated(error, 'its response timeout')
    }
  }

  async #command<Schema extends z.ZodType>(
    name: string,
    schema: Schema,
    options: { args?: object; timeoutMs?: number } = {},
  ): Promise<z.output<Schema>> {
    await this.#bound()
    const { args, timeoutMs = this.#limits.commandMs } = options
    const command = JSON.stringify({ execute: name, ...(args === undefined ? {} : { arguments: args }) })
    try {
      return this.#read(name, schema, await this.#domains.agent(this.#uuid, command, seconds(timeoutMs)))
    } catch (error) {
      throw this.#translated(error, name)
    }
  }

  #read<Schema extends z.ZodType>(name: string, schema: Schema, reply: string): z.output<Schema> {
    if (reply.length > mostReplyBytes) throw this.#refused(name, 'its answer is too long')
    const answer = replies.commandReply.safeParse(parseJson(reply))
    if (!answer.success) throw this.#refused(name, 'its answer is not understood')
    if ('error' in answer.data) throw this.#refused(name, answer.data.error.desc ?? 'no reason given')
    const value = schema.safeParse(answer.data.value)
    if (!value.success) throw this.#refused(name, 'its answer is not what the protocol says')
    return value.data
  }

  /** libvirt's refusals in terms of the guest; everything about the VM or the daemon stays as it is. */
  #translated(error: unknown, call: string): unknown {
    if (isFailure(error, 'HYPERVISOR_REFUSED') && error instanceof Failure) {
      const code = libvirtCode(error)
      const reason = String(error.context.reason)
      const absent: readonly unknown[] = [libvirtCodes.argumentUnsupported, libvirtCodes.operationInvalid]
      return absent.includes(code) ? this.#silent(reason, error) : this.#refused(call, reason, error)
    }
    if (isFailure(error, 'DEADLINE_EXCEEDED')) return this.#silent(describeError(error), error)
    if (isFailure(error, 'VM_BUSY')) return this.#silent(describeError(error), error)
    return error
  }

  async #isOff(error: unknown): Promise<boolean> {
    if (isFailure(error, 'VM_NOT_FOUND')) return true
    try {
      return !(await this.#domains.isActive(this.#uuid))
    } catch (stateError) {
      return isFailure(stateError, 'VM_NOT_FOUND')
    }
  }

  #silent(reason: string, cause?: unknown) {
    return failure('GUEST_NOT_RESPONDING', { vm: this.vm, reason }, cause)
  }

  #refused(call: string, reason: string, cause?: unknown) {
    return failure('GUEST_REFUSED', { vm: this.vm, call, reason }, cause)
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

const output = (base64: string | undefined): string =>
  Buffer.from(base64 ?? '', 'base64')
    .subarray(0, mostOutputBytes)
    .toString('utf8')
