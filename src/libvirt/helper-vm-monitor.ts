/**
 * QEMU's monitor on a pair of streams: commands one after the other, and the event that a device is gone.
 * See "QEMU Machine Protocol Specification" and "QEMU QMP Reference Manual" of the QEMU documentation.
 */
import type { Readable, Writable } from 'node:stream'
import { z } from 'zod'
import { failure } from '../errors.ts'

const maximumLineBytes = 1024 * 1024

const messageSchema = z.object({
  QMP: z.unknown().optional(),
  return: z.unknown().optional(),
  error: z.object({ desc: z.string() }).optional(),
  event: z.string().optional(),
  data: z.object({ device: z.string().optional() }).loose().optional(),
})

interface Answer {
  readonly resolve: (value: unknown) => void
  readonly reject: (error: unknown) => void
}

export class HelperVmMonitor {
  readonly #input: Writable
  readonly #waiting: { command: string; answer: Answer }[] = []
  readonly #removals = new Map<string, () => void>()
  #rest = ''
  #broken: unknown

  constructor(output: Readable, input: Writable) {
    this.#input = input
    input.on('error', (error) => this.end(error))
    output.on('data', (bytes: Buffer) => this.#take(bytes))
  }

  /** Rejects with HELPER_VM_FAILED when QEMU says no or has ended. */
  execute(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    if (this.#broken !== undefined) return Promise.reject(this.#broken)
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    this.#waiting.push({ command, answer: { resolve, reject } })
    this.#input.write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    return promise
  }

  /** Takes a device away and waits until it is gone; for ever when QEMU ends, which the caller watches for. */
  async removeDevice(id: string): Promise<void> {
    const gone = Promise.withResolvers<void>()
    this.#removals.set(id, () => gone.resolve())
    await this.execute('device_del', { id })
    await gone.promise
    this.#removals.delete(id)
  }

  /** Whoever waits hears that nothing comes any more. */
  end(reason: unknown): void {
    this.#broken ??= reason
    for (const { answer } of this.#waiting.splice(0)) answer.reject(this.#broken)
  }

  #take(bytes: Buffer): void {
    const lines = (this.#rest + bytes.toString('latin1')).split('\n')
    this.#rest = lines.pop() ?? ''
    if (this.#rest.length > maximumLineBytes) this.end(unreadable())
    for (const line of lines) if (line.trim() !== '') this.#message(line)
  }

  #message(line: string): void {
    const parsed = messageSchema.safeParse(parseJson(line))
    if (!parsed.success) {
      this.end(unreadable())
      return
    }
    const { QMP, error, event, data } = parsed.data
    if (event === 'DEVICE_DELETED' && data?.device !== undefined) this.#removals.get(data.device)?.()
    if (QMP !== undefined || event !== undefined) return
    const first = this.#waiting.shift()
    if (first === undefined) this.end(unreadable())
    else if (error === undefined) first.answer.resolve(parsed.data.return)
    else first.answer.reject(failure('HELPER_VM_FAILED', { reason: `QEMU refused ${first.command}: ${error.desc}` }))
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(Buffer.from(text, 'latin1').toString('utf8'))
  } catch {
    return undefined
  }
}

function unreadable() {
  return failure('HELPER_VM_FAILED', { reason: "QEMU's monitor is not understood" })
}
