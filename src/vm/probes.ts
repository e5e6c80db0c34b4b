/**
 * The probes of a boot check: what a guest that has come up must be able to do. Each is bounded in time and in what it
 * takes from the guest, which is a stranger like every other.
 */
import { connect } from 'node:net'
import type { Clock } from '../base/clock.ts'
import { describeError } from '../base/failure.ts'
import type { Probe } from '../vss/boot-check.ts'
import { probeText } from './check-plan.ts'
import type { GuestIntegration } from './hypervisor.ts'

type Answer = {
  readonly passed: boolean
  /** In words, one line. */
  readonly detail: string
  /** Of a command: what it wrote, the first part of it. */
  readonly output?: string
}

export type ProbeResult = Answer & { readonly probe: string }

export interface ProbedGuest {
  readonly guest: GuestIntegration
  readonly clock: Clock
  /** Milliseconds that are left for this guest. */
  readonly leftMs: () => number
  /** Three numbers of the network that this host is in with the guest; or why it is in none. */
  readonly subnet: string | { readonly missing: string }
  readonly signal: AbortSignal
}

const mostOutputCharacters = 2048
/** A service may come up later than the agent; not much later, or it is not there. */
const serviceMs = 60_000
const oneTryMs = 5_000
const pauseMs = 500

/** Never rejects but for the signal's reason. */
export async function runProbe(probe: Probe, probed: ProbedGuest): Promise<ProbeResult> {
  try {
    return { probe: probeText(probe), ...(await answerOf(probe, probed)) }
  } catch (error) {
    probed.signal.throwIfAborted()
    return { probe: probeText(probe), passed: false, detail: describeError(error) }
  }
}

async function answerOf(probe: Probe, probed: ProbedGuest): Promise<Answer> {
  if (probe.kind === 'run') return runInside(probe.command, probed)
  if (probe.kind !== 'agent') return reach(probe, probed)
  await probed.guest.ping()
  return { passed: true, detail: 'the agent answers' }
}

async function runInside(command: string, { guest, leftMs }: ProbedGuest): Promise<Answer> {
  const isWindows = (await guest.osInfo()).id === 'mswindows'
  const [shell, flag] = isWindows ? ['cmd.exe', '/c'] : ['/bin/sh', '-c']
  const timeoutMs = Math.max(1, leftMs())
  const { exitCode, stdout, stderr } = await guest.exec(shell, [flag, command], { timeoutMs })
  const output = `${stdout}${stderr}`.slice(0, mostOutputCharacters)
  return { passed: exitCode === 0, detail: `exit code ${exitCode}`, ...(output === '' ? {} : { output }) }
}

type NetworkProbe = Extract<Probe, { readonly port: number }>

/** Tries again until it succeeds: an address may not be given yet, a service not be up. */
async function reach(probe: NetworkProbe, probed: ProbedGuest): Promise<Answer> {
  const { subnet, clock, signal } = probed
  if (typeof subnet !== 'string') return { passed: false, detail: subnet.missing }
  const giveUpAt = clock.monotonicMs() + Math.min(serviceMs, probed.leftMs())
  for (;;) {
    const found = await tryOnce(probe, probed.guest, subnet)
    if (found.passed || clock.monotonicMs() >= giveUpAt) return found
    await clock.sleep(pauseMs, signal)
  }
}

async function tryOnce(probe: NetworkProbe, guest: GuestIntegration, subnet: string): Promise<Answer> {
  const addresses = await guest.addresses()
  // The first is this host's: whoever claims it would let the host answer for the guest.
  const near = addresses.filter((address) => address.startsWith(`${subnet}.`) && address !== `${subnet}.1`)
  const has = addresses.slice(0, 8).join(', ') || 'none'
  const none = `the guest took no address of ${subnet}.0/24, which is offered by DHCP; its addresses: ${has}`
  let detail = none
  for (const host of near.slice(0, 4)) {
    try {
      return { passed: true, detail: await (probe.kind === 'tcp' ? openTcp(host, probe) : askHttp(host, probe)) }
    } catch (error) {
      detail = `${host}: ${describeError(error)}`
    }
  }
  return { passed: false, detail }
}

function openTcp(host: string, { port }: NetworkProbe): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, timeout: oneTryMs })
    socket.once('connect', () => resolve(`${host}:${port} accepts connections`))
    socket.once('timeout', () => reject(new Error(`no answer from port ${port} within ${oneTryMs} ms`)))
    socket.once('error', reject)
    for (const end of ['connect', 'timeout', 'error']) socket.once(end, () => socket.destroy())
  })
}

/** The status is all that is read. */
async function askHttp(host: string, { port, path }: NetworkProbe & { readonly path?: string }): Promise<string> {
  const { get } = await import('node:http') // loads a good deal, which every command would wait for
  return new Promise((resolve, reject) => {
    const request = get({ host, port, path: path ?? '/', agent: false, signal: AbortSignal.timeout(oneTryMs) })
    request.once('error', reject)
    request.once('response', (response) => {
      const { statusCode = 0 } = response
      response.on('error', () => undefined) // it is cut off on purpose
      response.destroy()
      if (statusCode >= 200 && statusCode < 400) resolve(`${host}:${port} answers with status ${statusCode}`)
      else reject(new Error(`status ${statusCode}`))
    })
  })
}
