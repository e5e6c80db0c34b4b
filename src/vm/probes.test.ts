/**
 * Probes over the network: a service of the guest is found at whatever address of the isolated network it has, tried
 * until it is there, and nothing else is taken for it.
 */
import assert from 'node:assert/strict'
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, createServer } from 'node:net'
import { test } from 'node:test'
import { systemClock } from '../base/clock.ts'
import type { Probe } from '../vss/boot-check.ts'
import type { GuestIntegration } from './hypervisor.ts'
import { runProbe } from './probes.ts'

/** A guest that has these addresses, the next ones each time it is asked. */
function probed(answers: readonly (readonly string[])[], leftMs = 5_000) {
  let asked = 0
  const began = performance.now()
  const guest = { addresses: async () => answers[Math.min(asked++, answers.length - 1)] ?? [] }
  return {
    guest: guest as unknown as GuestIntegration,
    clock: { ...systemClock, sleep: () => new Promise<void>((resolve) => setImmediate(resolve)) },
    leftMs: () => leftMs - (performance.now() - began),
    subnet: '127.0.0',
    signal: new AbortController().signal,
  }
}

async function listening(status: number | 'tcp') {
  const server = status === 'tcp' ? createServer() : createHttpServer((_, response) => response.writeHead(status).end())
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.2', resolve))
  const { port } = server.address() as AddressInfo
  return { port, [Symbol.asyncDispose]: async () => void server.close() }
}

const http = (port: number): Probe => ({ kind: 'http', port, path: '/health' })

test('a port that accepts and a page that answers succeed, once the guest has its address', async () => {
  await using tcp = await listening('tcp')
  const late = probed([[], ['10.0.0.5'], ['10.0.0.5', '127.0.0.2']])
  const open = await runProbe({ kind: 'tcp', port: tcp.port }, late)
  assert.deepEqual(open, {
    probe: `tcp=${tcp.port}`,
    passed: true,
    detail: `127.0.0.2:${tcp.port} accepts connections`,
  })
  await using page = await listening(204)
  const found = await runProbe(http(page.port), probed([['127.0.0.2']]))
  assert.deepEqual([found.passed, found.detail], [true, `127.0.0.2:${page.port} answers with status 204`])
})

test('a page with an error, and a port where nobody listens, fail in words', async () => {
  await using page = await listening(503)
  const unwell = await runProbe(http(page.port), probed([['127.0.0.2']], 0))
  assert.deepEqual([unwell.passed, unwell.detail], [false, '127.0.0.2: status 503'])
  const nobody = await runProbe({ kind: 'tcp', port: 1 }, probed([['127.0.0.2']], 0))
  assert.match(nobody.detail, /^127\.0\.0\.2: connect ECONNREFUSED/)
})

test('addresses of other networks, and the one of this host, are not asked', async () => {
  await using page = await listening(200)
  const elsewhere = await runProbe(http(page.port), probed([['127.0.1.2', '127.0.0.1', '::1']], 0))
  assert.equal(elsewhere.passed, false)
  assert.match(elsewhere.detail, /^the guest took no address of 127\.0\.0\.0\/24.*127\.0\.1\.2, 127\.0\.0\.1, ::1$/)
})

test('an agent that refuses is a failed probe, a cancelled command is not', async () => {
  const refusing = probed([[]])
  const guest = { addresses: () => Promise.reject(new Error('not supported')) } as unknown as GuestIntegration
  const refused = await runProbe(http(80), { ...refusing, guest })
  assert.deepEqual([refused.passed, refused.detail], [false, 'not supported'])
  const signal = AbortSignal.abort(new Error('stopped'))
  await assert.rejects(runProbe(http(80), { ...refusing, guest, signal }), /stopped/)
})
