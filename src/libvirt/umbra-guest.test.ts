import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { failure } from '../errors.ts'
import { GuestAgent, type GuestChannel } from './guest-agent.ts'
import { isFailure } from './libvirt-errors.ts'
import { UmbraGuest, type UmbraGuestLimits } from './umbra-guest.ts'

const code = (expected: string) => (error: unknown) => isFailure(error, expected)
const set = '0badcafe'
const execCommands = ['guest-exec', 'guest-exec-status']
const fileCommands = ['guest-file-open', 'guest-file-read', 'guest-file-write', 'guest-file-close']

const scripts = mkdtempSync(join(tmpdir(), 'umbra-scripts-'))
after(() => rmSync(scripts, { recursive: true }))
for (const name of ['umbra-guest', 'umbra-revert']) writeFileSync(join(scripts, name), `# the whole of ${name}`)

interface Answer {
  readonly exit?: number
  readonly out?: string
  readonly err?: string
  /** Asked so often before it has ended; `forever` never ends. */
  readonly after?: number
}

interface Run {
  readonly args: readonly string[]
  readonly input: string | undefined
}

type Program = (run: Run) => Answer

const base64 = (text: string | undefined) => Buffer.from(text ?? '').toString('base64')
const domain = `<domain><name>web</name><devices>
  <disk type='file' device='disk'><source file='/a'/><target dev='sda' bus='scsi'/><serial>web-sda</serial></disk>
  <disk type='file' device='disk'><source file='/b'/><target dev='sdb' bus='scsi'/><serial>web-sdb</serial></disk>
  <disk type='file' device='disk'><source file='/c'/><target dev='sdc' bus='scsi'/><serial>web-sdc</serial></disk>
</devices></domain>`
const seen = (serial: string, dev: string) => ({ 'bus-type': 'scsi', bus: 0, target: 0, unit: 0, serial, dev })

/** A guest that `program` runs in, whichever way a request takes; `service` undefined: the package is not installed. */
class FakeGuest {
  readonly runs: Run[] = []
  readonly commands: string[] = []
  enabled: readonly string[] = [...execCommands, ...fileCommands, 'guest-get-fsinfo', 'guest-get-disks']
  service = true
  fallsSilentAt = ''
  readonly #program: Program
  readonly #processes = new Map<number, { answer: Answer; asked: number }>()
  readonly #replies = new Map<string, string>()
  readonly #open = new Map<number, { path: string; written: string }>()

  constructor(program: Program) {
    this.#program = program
  }

  guest(limits: Partial<UmbraGuestLimits> = {}): UmbraGuest {
    const channel: GuestChannel = {
      nameOf: () => 'web',
      setAgentTimeout: async () => undefined,
      xml: async () => domain,
      isActive: async () => true,
      agent: async (_uuid, text) => {
        const { execute, arguments: args } = JSON.parse(text)
        this.commands.push(execute)
        if (execute === this.fallsSilentAt) throw failure('GUEST_NOT_RESPONDING', { vm: 'web', reason: 'nothing' })
        const isOff = [...execCommands, ...fileCommands].includes(execute) && !this.enabled.includes(execute)
        if (isOff) return JSON.stringify({ error: { desc: 'disabled' } })
        const value = this.#answer(execute, args)
        return JSON.stringify(value instanceof Error ? { error: { desc: value.message } } : { return: value })
      },
    }
    return new UmbraGuest(new GuestAgent(channel, 'x'), limits, scripts)
  }

  // biome-ignore lint/suspicious/noExplicitAny: whatever a command's arguments are
  #answer(command: string, args: any): unknown {
    switch (command) {
      case 'guest-info':
        return { supported_commands: this.enabled.map((name) => ({ name, enabled: true })) }
      case 'guest-get-fsinfo':
        return [
          { mountpoint: '/', type: 'ext4', disk: [seen('web-sda', '/dev/sda1')] },
          { mountpoint: '/srv/data', type: 'ext4', disk: [seen('web-sdb', '/dev/sdb')] },
          { mountpoint: '/usb', type: 'vfat', disk: [seen('stick', '/dev/sdx1')] },
        ]
      case 'guest-get-disks':
        return ['a', 'b', 'c'].map((letter) => {
          const name = `/dev/sd${letter}`
          return { name, partition: false, dependencies: [], address: seen(`web-sd${letter}`, name) }
        })
      case 'guest-exec':
        return this.#start({ args: args.arg, input: this.#decoded(args['input-data']) })
      case 'guest-exec-status':
        return this.#status(args.pid)
      default:
        return this.#file(command, args)
    }
  }

  #decoded(text: string | undefined) {
    return text === undefined ? undefined : Buffer.from(text, 'base64').toString()
  }

  #start(run: Run) {
    this.runs.push(run)
    const pid = this.runs.length
    this.#processes.set(pid, { answer: this.#program(run), asked: 0 })
    return { pid }
  }

  #status(pid: number) {
    const process = this.#processes.get(pid)
    if (process === undefined) return new Error('PID does not exist')
    process.asked += 1
    const { exit = 0, out, err, after = 0 } = process.answer
    if (process.asked <= after) return { exited: false }
    this.#processes.delete(pid)
    return { exited: true, exitcode: exit, 'out-data': base64(out), 'err-data': base64(err) }
  }

  // biome-ignore lint/suspicious/noExplicitAny: whatever a command's arguments are
  #file(command: string, args: any): unknown {
    if (command === 'guest-file-open') {
      const there = this.#replies.has(args.path) || (this.service && args.path === '/run/umbra-guest-service/request')
      if (!there) return new Error('No such file or directory')
      this.#open.set(1000 + this.#open.size, { path: args.path, written: '' })
      return 999 + this.#open.size
    }
    const file = this.#open.get(args.handle)
    if (file === undefined) return new Error('no such handle')
    if (command === 'guest-file-write') {
      file.written += this.#decoded(args['buf-b64'])
      return { count: Buffer.from(args['buf-b64'], 'base64').length, eof: false }
    }
    if (command === 'guest-file-read') {
      return { count: 1, 'buf-b64': base64(this.#replies.get(file.path)), eof: true }
    }
    const [id = '', ...words] = file.written.trim().split(' ')
    if (id !== '') this.#serve(id, words)
    return {}
  }

  #serve(id: string, words: readonly string[]) {
    const run = { args: words, input: undefined }
    this.runs.push(run)
    const { exit = 0, out = '', err = '', after = 0 } = this.#program(run)
    const text = `exit ${exit}\nreason ${err.trimEnd().split('\n').at(-1)}\n${out}`
    if (after === 0) this.#replies.set(`/run/umbra-guest-service/replies/${id}`, text)
  }
}

const description = [
  'version\t1',
  'fs\t/\text4\tother\t/dev/sda1\t0\ton a partition',
  'fs\t/srv/data\text4\tlvm\tdatavg/data\t4194304\t',
  'pv\tdatavg\t/dev/sdb',
  'pv\tdatavg\t/dev/sdc',
  'writer\tdb',
  '',
].join('\n')

const viaPackage = (guest: FakeGuest) => {
  guest.enabled = [...fileCommands, 'guest-get-fsinfo', 'guest-get-disks']
  return guest
}

for (const via of ['exec', 'package'] as const) {
  const fake = (program: Program) => (via === 'exec' ? new FakeGuest(program) : viaPackage(new FakeGuest(program)))

  describe(`a guest requestor by ${via}`, () => {
    it('describes volumes with every disk of their group', async () => {
      const said = await fake(() => ({ out: description }))
        .guest()
        .describe()
      assert.deepEqual(said, {
        via,
        volumes: [
          {
            mountPoint: '/',
            type: 'ext4',
            kind: 'other',
            where: '/dev/sda1',
            targets: ['sda'],
            roomBytes: 0,
            obstacle: 'on a partition',
          },
          {
            mountPoint: '/srv/data',
            type: 'ext4',
            kind: 'lvm',
            where: 'datavg/data',
            targets: ['sdb', 'sdc'],
            roomBytes: 4194304,
          },
        ],
        writers: ['db'],
        arrays: [],
        strayDevices: [],
      })
    })

    it('names parts on disks that are none of the VM', async () => {
      const volumes = 'fs\t/usb\tvfat\tother\t/dev/sdx1\t0\tvfat\npv\tdatavg\t/dev/nvme9n1\n'
      const said = await fake(() => ({ out: description + volumes }))
        .guest()
        .describe()
      assert.deepEqual(said.strayDevices, ['/dev/nvme9n1', '/dev/sdx1'])
      assert.deepEqual(said.volumes[1]?.targets, ['sdb', 'sdc'])
    })

    it('takes a group without any physical volume for one that lies elsewhere', async () => {
      const out = 'version\t1\nfs\t/srv/data\text4\tlvm\tdatavg/data\t1\t\n'
      const said = await fake(() => ({ out }))
        .guest()
        .describe()
      assert.deepEqual(said.strayDevices, ['datavg/data'])
    })

    it('hands over limits in seconds, rounded up', async () => {
      const guest = fake(() => ({}))
      const requestor = guest.guest()
      await requestor.prepare(set, 90_001)
      await requestor.freezeWriters(set, 1_500)
      await requestor.commit(set)
      await requestor.thawWriters(set)
      const said = guest.runs.map(({ args }) => args.slice(args.findIndex((word) => /^[a-z]+$/.test(word))).join(' '))
      assert.deepEqual(said, [`prepare ${set} 91`, `freeze ${set} 2`, `commit ${set}`, `thaw ${set}`])
    })

    it('tells a veto, a refusal and a lost set apart, in the words of the guest', async () => {
      const failing = async (exit: number) => {
        const guest = fake(() => ({ exit, err: 'first\n\u001b[31mdb says no\n' })).guest()
        return await guest.commit(set).then(
          () => 'done',
          (error: unknown) => error,
        )
      }
      const expected = [
        [3, 'GUEST_WRITER_VETO'],
        [4, 'GUEST_REFUSED'],
        [5, 'GUEST_SET_LOST'],
        [6, 'GUEST_SET_LOST'],
        [1, 'GUEST_REFUSED'],
        [137, 'GUEST_REFUSED'],
      ] as const
      for (const [exit, wanted] of expected) {
        const error = await failing(exit)
        assert.ok(isFailure(error, wanted), `${exit}: ${error}`)
        assert.match(String(error), /\ufffd\[31mdb says no/)
      }
    })

    it('takes the release of a set that is not there for done', async () => {
      await fake(() => ({ exit: 6 }))
        .guest()
        .release(set)
      await assert.rejects(
        fake(() => ({ exit: 1 }))
          .guest()
          .release(set),
        code('GUEST_REFUSED'),
      )
    })

    it('does not believe what it can not understand', async () => {
      const lying = fake(() => ({ out: 'version\t1\nrm\t-rf\n' })).guest()
      for (const call of [() => lying.describe(), () => lying.status(set), () => lying.revert(set, ['umbra-a'])]) {
        await assert.rejects(call, code('GUEST_REFUSED'))
      }
    })

    it('gives up a guest that does not come to an end', async () => {
      const slow = fake(() => ({ after: 1_000_000 })).guest({ commitMs: 30, prepareMs: 30 })
      await assert.rejects(slow.prepare(set, 1_000), code('GUEST_NOT_RESPONDING'))
      await assert.rejects(slow.commit(set), code('GUEST_NOT_RESPONDING'))
    })

    it('reads areas, and the fsids to give back', async () => {
      const fsid = '01234567-89ab-cdef-0123-456789abcdef'
      const guest = fake(({ args }) => ({
        out: args.includes('status') ? 'area\ta/b\t1\t2\n' : `fsid\tumbra-a\t${fsid}\n`,
      })).guest()
      assert.deepEqual(await guest.status(set), [{ where: 'a/b', usedBytes: 1, totalBytes: 2 }])
      assert.deepEqual(await guest.revert(set, ['umbra-a', 'umbra-b']), [{ serial: 'umbra-a', fsid }])
      await assert.rejects(guest.revert(set, ['umbra-a; reboot']), code('GUEST_REFUSED'))
    })
  })
}

describe('the way into the guest', () => {
  it('carries the script along, except inside the hold', async () => {
    const guest = new FakeGuest(({ args }) => ({ out: args.includes('describe') ? description : '' }))
    const requestor = guest.guest()
    await requestor.describe()
    await requestor.prepare(set, 1_000)
    await requestor.freezeWriters(set, 1_000)
    await requestor.commit(set)
    await requestor.thawWriters(set)
    await requestor.status(set)
    await requestor.release(set)
    await requestor.revert(set, ['umbra-a'])
    const whole = '# the whole of umbra-guest'
    const none = undefined
    const carried = guest.runs.map(({ input }) => input)
    assert.deepEqual(carried, [whole, whole, none, none, none, none, whole, '# the whole of umbra-revert'])
  })

  it('asks nothing but what it has to inside the hold', async () => {
    const guest = new FakeGuest(() => ({}))
    const requestor = guest.guest()
    await requestor.prepare(set, 1_000)
    const before = guest.commands.length
    await requestor.freezeWriters(set, 1_000)
    await requestor.commit(set)
    await requestor.thawWriters(set)
    assert.deepEqual(guest.commands.slice(before), [...execCommands, ...execCommands, ...execCommands])
  })

  it('takes a copy of the script that is gone for a guest that was restarted', async () => {
    const err = '/bin/sh: 0: cannot open /run/umbra-guest/umbra-guest: No such file\n'
    const guest = new FakeGuest(() => ({ exit: 2, err })).guest()
    await assert.rejects(guest.status(set), code('GUEST_SET_LOST'))
  })

  it('lets what was given up come to its end before it releases', async () => {
    const guest = new FakeGuest(({ args }) => (args.includes('prepare') ? { after: 6 } : {}))
    const requestor = guest.guest({ prepareMs: 0 })
    await assert.rejects(requestor.prepare(set, 1_000), code('GUEST_NOT_RESPONDING'))
    const before = guest.commands.length
    await requestor.release(set)
    const after = guest.commands.slice(before)
    const began = after.indexOf('guest-exec')
    assert.equal(after.slice(0, began).filter((command) => command === 'guest-exec-status').length, 6)
  })

  it('releases also when what was given up never ends, and when the agent was started again', async () => {
    for (const answer of [{ after: 1_000_000 }, {}]) {
      const guest = new FakeGuest(({ args }) => (args.includes('prepare') ? { after: 1_000_000 } : answer))
      const requestor = guest.guest({ prepareMs: 0, releaseMs: 50 })
      await assert.rejects(requestor.prepare(set, 1_000), code('GUEST_NOT_RESPONDING'))
      await requestor.release(set).catch((error) => assert.ok(code('GUEST_NOT_RESPONDING')(error)))
      assert.equal(guest.runs.length, 2)
    }
  })

  it('is told when there is none', async () => {
    const without = viaPackage(new FakeGuest(() => ({})))
    without.service = false
    await assert.rejects(without.guest().describe(), code('GUEST_REFUSED'))
    const deaf = new FakeGuest(() => ({}))
    deaf.enabled = ['guest-get-fsinfo']
    await assert.rejects(deaf.guest().describe(), code('GUEST_REFUSED'))
  })

  it('does not take silence for a missing package', async () => {
    const silent = viaPackage(new FakeGuest(() => ({})))
    silent.fallsSilentAt = 'guest-file-open'
    await assert.rejects(silent.guest().release(set), code('GUEST_NOT_RESPONDING'))
  })
})
