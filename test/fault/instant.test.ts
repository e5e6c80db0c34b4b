/**
 * Instant restores killed before and after every call to the outside: whoever comes next goes on by the record (laws 1, 2).
 * Either nothing is left, or the VM has all it needs; and what was begun can always be ended.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtempDisposable, readdir, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import type { Repository } from '../../src/repository/repository.ts'
import {
  beginInstant,
  dropInstant,
  finishInstant,
  type InstantMachine,
  type PlannedInstant,
  recoverInstant,
} from '../../src/requester/instant.ts'
import { type InstantRecord, instantDirectory, listRecords } from '../../src/requester/instant-record.ts'
import type { InstantServers } from '../../src/requester/instant-server.ts'

const crash = new Error('killed')
const targets = ['sda', 'sdb']
const { signal } = new AbortController()

/** What is there whoever dies: a hypervisor, processes, the repository's pins. */
class World {
  readonly directory: string
  power: 'running' | 'off' | 'gone' = 'gone'
  server = false
  gate = false
  pin: string | undefined
  damaged = false
  readonly pulled = new Set<string>()
  readonly written = new Set<string>()
  calls = 0
  /** Dies at this call, before it has its effect or after; never when undefined. */
  dieAt: { readonly call: number; readonly after: boolean } | undefined

  constructor(directory: string) {
    this.directory = directory
  }

  overlay(target: string): string {
    return join(this.directory, `${target}.qcow2`)
  }

  /** Once dead, nothing has an effect any more. */
  #mortal<T extends object>(port: T): T {
    return new Proxy(port, {
      get: (from, key) => {
        const value = Reflect.get(from, key)
        if (typeof value !== 'function') return value
        return async (...args: unknown[]) => {
          const call = ++this.calls
          if (this.dieAt !== undefined && call > this.dieAt.call) throw crash
          if (this.dieAt?.call === call && !this.dieAt.after) throw crash
          const answer = await Reflect.apply(value, from, args)
          if (this.dieAt?.call === call) throw crash
          return answer
        }
      },
    })
  }

  get machine(): InstantMachine {
    return this.#mortal<InstantMachine>({
      uri: 'sim:///system',
      plan: () => Promise.reject(crash),
      makeOverlay: ({ overlay }) => writeFile(overlay, '', { flag: 'wx' }),
      openGate: async () => {
        assert.ok(this.server, 'the gate opens when somebody listens behind it')
        const opened = !this.gate
        this.gate = true
        return opened
      },
      closeGate: async () => {
        assert.ok(this.power !== 'running' || targets.every((one) => this.pulled.has(one)), 'nobody needs the gate')
        this.gate = false
      },
      start: async () => {
        assert.ok(this.server && this.gate && this.pin !== undefined, 'a VM starts on disks that are served')
        assert.equal((await listRecords(this.directory)).records.length, 1, 'and of which there is a record')
        this.power = 'running'
        this.written.add('sda')
      },
      power: async () => this.power,
      remove: async () => {
        this.power = 'gone'
      },
      isPulled: async (_, { target }) => this.pulled.has(target),
      isUnused: async ({ target }) => !this.written.has(target),
      beginPulls: async () => this.power === 'running',
      pull: async (_, { target }) => {
        if (this.pulled.has(target)) return
        assert.ok(this.server && this.gate, 'disks are pulled from where they are served')
        if (this.damaged) throw new Error('input/output error')
        this.pulled.add(target)
      },
      resume: async () => undefined,
    })
  }

  get servers(): InstantServers {
    return this.#mortal<InstantServers>({
      start: async () => {
        this.server = true
      },
      lives: async () => this.server,
      isServed: async () => this.server && this.gate,
      end: async () => {
        assert.equal(this.gate, false, 'the gate goes first')
        this.server = false
      },
    })
  }

  get repository(): Repository {
    return this.#mortal({
      location: '/backup',
      pins: async () => new Map(this.pin === undefined ? [] : [['p', { note: this.pin, pinnedAt: undefined }]]),
      pin: async (_: string, note: string) => {
        this.pin ??= note
      },
      unpin: async () => {
        this.pin = undefined
      },
    } as unknown as Repository)
  }

  get environment() {
    return { stateDirectory: this.directory, machine: this.machine, servers: this.servers }
  }

  get opened() {
    return { repository: this.repository, key: {}, [Symbol.asyncDispose]: async () => undefined }
  }

  get planned(): PlannedInstant {
    const disks = targets.map((target) => {
      return { target, stream: `disks/${target}`, overlay: this.overlay(target), sizeBytes: 512 }
    })
    const register = async () => {
      this.power = 'off'
    }
    const plan = { ...this.#mortal({ register }), name: 'now', uuid: '99999999-8888-4777-8666-555555555555', disks }
    const told = { steps: [], warnings: [], obstacles: [], files: [{ document: 'nvram', path: this.overlay('nvram') }] }
    const stored = { component: {} as never, metadata: {}, streams: {}, documents: { nvram: new Uint8Array(1) } }
    return { plan: { ...plan, register: plan.register, ...told }, component: 'c', stored }
  }

  begin = () => beginInstant({ id: 'p' } as never, this.planned, this.opened, this.environment)
  finish = async () => finishInstant(await this.record(), this.opened, this.environment, { signal })
  drop = async () => dropInstant(await this.record(), this.repository, this.environment)

  async recover(): Promise<void> {
    for (const record of (await listRecords(this.directory)).records) {
      const recovered = await recoverInstant(record, async () => this.opened, this.environment)
      assert.deepEqual(recovered?.failed ?? [], [])
    }
  }

  async record(): Promise<InstantRecord> {
    const [record] = (await listRecords(this.directory)).records
    assert.ok(record !== undefined, 'there is a record')
    return record
  }

  async isForgotten(): Promise<void> {
    assert.deepEqual([this.server, this.gate, this.pin], [false, false, undefined])
    assert.deepEqual(await readdir(instantDirectory(this.directory)).catch(() => []), [])
  }

  async isGone(): Promise<void> {
    await this.isForgotten()
    assert.equal(this.power, 'gone')
    for (const target of [...targets, 'nvram']) assert.equal(existsSync(this.overlay(target)), false)
  }
}

/** Dies at every call of `work`, before and after its effect; `judge` gets each world as it was left. */
async function everywhere(
  prepare: (world: World) => Promise<unknown>,
  work: (world: World) => Promise<unknown>,
  judge: (world: World) => Promise<void>,
): Promise<void> {
  let deaths = 0
  for (let call = 1; ; call++) {
    let survived = false
    for (const after of [false, true]) {
      await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
      const world = new World(directory.path)
      await prepare(world)
      world.calls = 0
      world.dieAt = { call, after }
      survived = await work(world).then(
        () => true,
        () => false,
      )
      if (world.calls < call) break
      survived = false
      deaths += 1
      world.dieAt = undefined
      await judge(world)
    }
    if (survived) break
  }
  assert.ok(deaths > 8, `killed ${deaths} times`)
}

const nothing = async () => undefined

describe('an instant restore that is killed', () => {
  it('while it begins: is taken back, or runs with all it needs', async () => {
    await everywhere(
      nothing,
      (world) => world.begin(),
      async (world) => {
        const wasRunning = world.power === 'running'
        await world.recover()
        if (!wasRunning) return await world.isGone()
        assert.ok(world.server && world.gate && world.pin !== undefined)
        assert.equal(world.power, 'running')
        await world.finish()
        await world.isForgotten()
      },
    )
  })

  it('while it is finished: is finished by the next who tries, and its VM never stops', async () => {
    await everywhere(
      (world) => world.begin(),
      (world) => world.finish(),
      async (world) => {
        assert.equal(world.power, 'running')
        await world.recover()
        if ((await listRecords(world.directory)).records.length > 0) await world.finish()
        await world.isForgotten()
        assert.equal(world.power, 'running')
        for (const target of targets) assert.ok(existsSync(world.overlay(target)) && world.pulled.has(target))
      },
    )
  })

  it('while it is dropped: is dropped by the next who tries', async () => {
    await everywhere(
      (world) => world.begin(),
      (world) => world.drop(),
      async (world) => {
        if ((await listRecords(world.directory)).records.length > 0) await world.drop()
        await world.isGone()
      },
    )
  })
})

describe('an instant restore', () => {
  it('whose server and gate die is served again by recover', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const world = new World(directory.path)
    await world.begin()
    for (const died of ['server', 'gate'] as const) {
      world[died] = false
      await world.recover()
      assert.ok(world.server && world.gate)
    }
    await world.recover()
  })

  it('that can not be finished loses nothing, says which disks, and can be finished later', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const world = new World(directory.path)
    await world.begin()
    world.damaged = true
    await assert.rejects(world.finish(), { code: 'INSTANT_NOT_PULLED', message: /sda: .*sdb: / })
    assert.ok(world.server && world.gate && world.pin !== undefined && world.power === 'running')
    world.damaged = false
    await world.finish()
    await world.isForgotten()
  })

  it('leaves a file that is in its way alone, and takes back the rest', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const world = new World(directory.path)
    await writeFile(world.overlay('sdb'), 'mine')
    await assert.rejects(world.begin(), { code: 'INSTANT_NOT_STARTED' })
    assert.deepEqual([existsSync(world.overlay('sda')), existsSync(world.overlay('sdb'))], [false, true])
    await world.isForgotten()
  })

  it("leaves somebody else's pin", async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const world = new World(directory.path)
    world.pin = 'for the auditors'
    await world.begin()
    await world.drop()
    assert.equal(world.pin, 'for the auditors')
  })

  it('has a name that no other has', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const world = new World(directory.path)
    await world.begin()
    await assert.rejects(world.begin(), { code: 'INSTANT_EXISTS' })
  })
})
