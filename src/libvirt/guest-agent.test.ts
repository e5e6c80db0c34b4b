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

  it('tells the addresses that others can reach, and none that is no address', async () => {
    const of = (...addresses: string[]) => ({
      name: 'eth0',
      'ip-addresses': addresses.map((one) => ({
        'ip-address': one,
        'ip-address-type': one.includes(':') ? 'ipv6' : 'ipv4',
      })),
    })
    const interfaces = [of('127.0.0.1', '::1'), { name: 'eth1' }, of('198.18.7.20', 'fe80::1', '2001:db8::5', '; rm')]
    const fake = channel(() => interfaces)
    assert.deepEqual(await new GuestAgent(fake, 'x').addresses(), ['198.18.7.20', '2001:db8::5'])
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
          () => guest.addresses(),
          () => guest.exec('/bin/true', [], { timeoutMs: 0 }),
          () => guest.disks(),
          () => guest.allowed('guest-exec'),
          () => guest.readFile('/x'),
          () => guest.writeFile('/x', 'w', 'text'),
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

describe('programs and files of a guest', () => {
  it('get their input, which is bounded', async () => {
    let handed: unknown
    const fake = channel((command, args) => {
      if (command === 'guest-exec') handed = args?.['input-data']
      return command === 'guest-exec' ? { pid: 7 } : { exited: true, exitcode: 0 }
    })
    const guest = new GuestAgent(fake, 'x')
    await guest.exec('/bin/sh', ['-s'], { input: 'echo ä' })
    assert.equal(handed, Buffer.from('echo ä').toString('base64'))
    await guest.exec('/bin/sh', [])
    assert.equal(handed, undefined)
    await assert.rejects(guest.exec('/bin/sh', ['-s'], { input: 'x'.repeat(2_000_000) }), code('GUEST_REFUSED'))
    await assert.rejects(guest.writeFile('/x', 'w', 'x'.repeat(2_000_000)), code('GUEST_REFUSED'))
  })

  it('are closed also when they refuse', async () => {
    const refusing = new Raw('{"error":{"desc":"no"}}')
    const write = channel((command) => (command === 'guest-file-open' ? 5 : refusing))
    await assert.rejects(new GuestAgent(write, 'x').writeFile('/x', 'w', 'text'), code('GUEST_REFUSED'))
    assert.equal(write.commands.at(-1), 'guest-file-close')
    const short = channel((command) => (command === 'guest-file-open' ? 5 : { count: 1 }))
    await assert.rejects(new GuestAgent(short, 'x').writeFile('/x', 'w', 'text'), code('GUEST_REFUSED'))
    const read = channel((command) => (command === 'guest-file-open' ? 5 : refusing))
    await assert.rejects(new GuestAgent(read, 'x').readFile('/x'), code('GUEST_REFUSED'))
    assert.equal(read.commands.at(-1), 'guest-file-close')
  })

  it('are read to their end, if they have one', async () => {
    const parts = ['one ', 'two']
    const fake = channel((command) => {
      if (command === 'guest-file-open') return 5
      const text = parts.shift() ?? ''
      return { count: text.length, 'buf-b64': Buffer.from(text).toString('base64'), eof: parts.length === 0 }
    })
    assert.equal(await new GuestAgent(fake, 'x').readFile('/x'), 'one two')
    const part = { count: 65_536, 'buf-b64': Buffer.alloc(65_536).toString('base64'), eof: false }
    for (const answer of [part, { count: 0, 'buf-b64': '', eof: false }]) {
      const endless = channel((command) => (command === 'guest-file-open' ? 5 : answer))
      await assert.rejects(new GuestAgent(endless, 'x').readFile('/x'), code('GUEST_REFUSED'))
      assert.ok(endless.commands.length < 30)
    }
  })

  it('are asked for often at first, then less often', async () => {
    const asked: number[] = []
    await new GuestAgent(
      channel(() => ({})),
      'x',
    ).poll(300, async () => void asked.push(performance.now()))
    const pauses = asked.slice(1).map((at, index) => at - (asked[index] ?? 0))
    assert.ok(asked.length >= 5 && asked.length <= 12, String(asked.length))
    assert.ok((pauses.at(-1) ?? 0) > 3 * (pauses[0] ?? 0))
  })
})

describe('disks of a guest', () => {
  const address = (serial: string) => ({ 'bus-type': 'scsi', bus: 0, target: 0, unit: 0, serial })

  it('are found by serial, partitions through what they depend on', async () => {
    const fake = channel(() => [
      { name: '/dev/sdb', partition: false, dependencies: [], address: address('0QEMU_QEMU_HARDDISK_web-sda') },
      { name: '/dev/sdb1', partition: true, dependencies: ['/dev/sdb'], address: address('web-sda') },
      { name: '/dev/dm-0', partition: false, dependencies: ['/dev/sdb1'] },
      { name: '/dev/sdx', partition: false, address: address('stick') },
    ])
    fake.xml = async () =>
      "<domain><devices><disk type='file' device='disk'><target dev='sda' bus='scsi'/><serial>web-sda</serial></disk>" +
      '</devices></domain>'
    const disks = await new GuestAgent(fake, 'x').disks()
    const told = disks.map(({ name, target, dependencies }) => [name, target, ...dependencies])
    assert.deepEqual(told, [
      ['/dev/sdb', 'sda'],
      ['/dev/sdb1', undefined, '/dev/sdb'],
      ['/dev/dm-0', undefined, '/dev/sdb1'],
      ['/dev/sdx', undefined],
    ])
  })

  it('and programs are asked for only when the agent allows it', async () => {
    const commands = [
      { name: 'guest-exec', enabled: false },
      { name: 'guest-ping', enabled: true },
    ]
    const guest = new GuestAgent(
      channel(() => ({ supported_commands: commands })),
      'x',
    )
    assert.deepEqual(
      [
        await guest.allowed('guest-ping'),
        await guest.allowed('guest-ping', 'guest-exec'),
        await guest.allowed('other'),
      ],
      [true, false, false],
    )
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
