import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import fc from 'fast-check'
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { GuestAgent, type GuestChannel } from './guest-agent.ts'
import { isFailure } from './libvirt-errors.ts'

type Reply = (command: string, args: Record<string, unknown> | undefined) => unknown

interface FakeChannel extends GuestChannel {
  readonly commands: string[]
  active: boolean
}

class Raw {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

/** An agent that answers with what `reply` returns, as the value of a good answer, or raw. */
function channel(reply: Reply): FakeChannel {
  const commands: string[] = []
  return {
    commands,
    active: true,
    nameOf: () => 'web',
    setAgentTimeout: async () => void commands.push('bound'),
    async agent(_uuid: string, text: string) {
      const { execute, arguments: args } = JSON.parse(text)
      commands.push(execute)
      const answer = await reply(execute, args)
      return answer instanceof Raw ? answer.text : JSON.stringify({ return: answer })
    },
    xml: async () => '<domain><name>web</name></domain>',
    async isActive() {
      return this.active
    },
  }
}

const silent = () => failure('GUEST_NOT_RESPONDING', { vm: 'web', reason: 'Guest agent not available for now' })
const code = (expected: string) => (error: unknown) => isFailure(error, expected)
const limits = { freezeMs: 1_000, thawMs: 1_000, commandMs: 1_000 }

describe('a guest agent', () => {
  it('is bounded before the first command', async () => {
    const fake = channel(() => ({}))
    await new GuestAgent(fake, 'x').ping()
    assert.deepEqual(fake.commands, ['bound', 'guest-ping'])
  })

  it('tells refusals of the guest from silence', async () => {
    const refusing = channel(() => new Raw('{"error":{"class":"GenericError","desc":"disabled"}}'))
    await assert.rejects(new GuestAgent(refusing, 'x').freeze(), code('GUEST_REFUSED'))
    const off = channel(() => {
      throw failure('HYPERVISOR_REFUSED', { call: 'c', reason: 'domain is not running', libvirtCode: 55 })
    })
    await assert.rejects(new GuestAgent(off, 'x').ping(), code('GUEST_NOT_RESPONDING'))
    const broken = channel(() => {
      throw failure('HYPERVISOR_REFUSED', { call: 'c', reason: 'too large', libvirtCode: 39 })
    })
    await assert.rejects(new GuestAgent(broken, 'x').osInfo(), code('GUEST_REFUSED'))
  })

  it('may answer anything at all: it becomes a coded failure or a checked value', async () => {
    const odd = fc.oneof(
      fc.json(),
      fc.string(),
      fc.jsonValue().map((value) => JSON.stringify({ return: value })),
      fc.constantFrom('{"return":-1}', '{"return":1e9}', '{"return":{"pid":1.5}}', '{"error":7}', '['.repeat(50_000)),
    )
    await fc.assert(
      fc.asyncProperty(odd, async (text) => {
        const guest = new GuestAgent(
          channel(() => new Raw(text)),
          'x',
          limits,
        )
        for (const call of [
          () => guest.freeze(),
          () => guest.freezeStatus(),
          () => guest.fileSystems(),
          () => guest.osInfo(),
          () => guest.exec('/bin/true', [], { timeoutMs: 0 }),
        ]) {
          await call().catch((error: unknown) => assert.ok(error instanceof Failure, String(error)))
        }
      }),
      { numRuns: 200 },
    )
  })

  it('runs programs to their end and cuts what they say', async () => {
    let polls = 0
    const fake = channel((command) => {
      if (command === 'guest-exec') return { pid: 7 }
      polls += 1
      if (polls < 3) return { exited: false }
      const text = Buffer.from('x'.repeat(1_500_000)).toString('base64')
      return { exited: true, exitcode: 3, 'out-data': text, 'err-data': 'not base64 !!' }
    })
    const result = await new GuestAgent(fake, 'x').exec('/bin/x', ['a'])
    assert.deepEqual([result.exitCode, result.stdout.length], [3, 1024 * 1024])
  })
})

describe('thaw', () => {
  it('goes on until the guest says that it is thawed, and adds up', async () => {
    const counts = [2, 1]
    const states = ['frozen', 'thawed']
    const fake = channel((command) => (command === 'guest-fsfreeze-thaw' ? counts.shift() : states.shift()))
    assert.equal(await new GuestAgent(fake, 'x', limits).thaw(), 3)
  })

  it('outlasts a guest that is silent for a while', async () => {
    let silences = 3
    const fake = channel((command) => {
      silences -= 1
      if (silences >= 0) throw silent()
      return command === 'guest-fsfreeze-thaw' ? 1 : 'thawed'
    })
    assert.equal(await new GuestAgent(fake, 'x', limits).thaw(), 1)
  })

  it('does not end before a lost freeze has ended', async () => {
    let frozen = false
    const fake = channel(async (command) => {
      if (command === 'guest-fsfreeze-freeze') {
        await setTimeout(400)
        frozen = true
        throw silent()
      }
      if (command === 'guest-fsfreeze-status') return frozen ? 'frozen' : 'thawed'
      const thawed = frozen ? 3 : 0
      frozen = false
      return thawed
    })
    const guest = new GuestAgent(fake, 'x', { ...limits, thawMs: 3_000 })
    const freezing = assert.rejects(guest.freeze(), code('GUEST_NOT_RESPONDING'))
    await setTimeout(50)
    assert.equal(await guest.thaw(), 3)
    assert.equal(frozen, false)
    await freezing
  })

  it('gives up when the guest stays silent', async () => {
    const fake = channel(() => {
      throw silent()
    })
    await assert.rejects(new GuestAgent(fake, 'x', { ...limits, thawMs: 300 }).thaw(), code('GUEST_NOT_RESPONDING'))
  })

  it('has nothing to do in a VM that is off', async () => {
    const fake = channel(() => {
      throw failure('HYPERVISOR_REFUSED', { call: 'c', reason: 'domain is not running', libvirtCode: 55 })
    })
    fake.active = false
    assert.equal(await new GuestAgent(fake, 'x', limits).thaw(), 0)
  })
})
