/**
 * Laws of ARCHITECTURE.md that need a whole backup to be seen. README.md says which test proves which law.
 */
import assert from 'node:assert/strict'
import { chmodSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import { openRepository } from '../../src/repository/repository.ts'
import { journalDirectory } from '../../src/requester/session.ts'
import { defaultPolicy } from '../../src/vm/method.ts'
import { FaultPlan } from '../sim/faulty.ts'
import { leftovers } from '../sim/leftovers.ts'
import type { SimVmSpec } from '../sim/sim-world.ts'
import { Host, Incarnation, inPlace } from './harness.ts'
import { afterBackup } from './judge.ts'

const small = { sizeBytes: 256 * 1024 }
const twoGuests: Record<string, SimVmSpec> = {
  web01: { disks: { sda: small, sdb: small } },
  web02: { disks: { sda: small } },
}
/** Without auto-recovery there is no child-snapshot: guests are frozen. */
const anything = { ...defaultPolicy, autoRecovery: false }

describe('law 4', () => {
  for (const instant of ['vm', 'set'] as const) {
    test(`nothing touches a disk of ours while a guest is frozen, one instant for each ${instant}`, async () => {
      await using host = await Host.create(twoGuests)
      const incarnation = new Incarnation(host)
      const journals = () => {
        const directory = journalDirectory(host.stateDirectory)
        return readdirSync(directory).map((name) => readFileSync(join(directory, name), 'utf8'))
      }
      let heard = 0
      const frozen = new Map<string, { journals: string[]; heard: number }>()
      for (const name of Object.keys(twoGuests)) {
        const guest = host.world.guest(name)
        const [freeze, thaw] = [guest.freeze.bind(guest), guest.thaw.bind(guest)]
        guest.freeze = async () => {
          const count = await freeze()
          frozen.set(name, { journals: journals(), heard: incarnation.events.length })
          return count
        }
        guest.thaw = async () => {
          assert.deepEqual(frozen.get(name), { journals: journals(), heard: incarnation.events.length })
          heard++
          return thaw()
        }
      }
      const outcome = await incarnation.backup({ ...anything, instant })
      assert.equal(outcome.ended, 'done')
      assert.equal(heard, 2)
      const calls = incarnation.plan.calls.map((call) => call.replace(/^\d+ /, ''))
      const from = calls.findIndex((call) => call.includes('freeze('))
      const to = calls.findLastIndex((call) => call.includes('thaw('))
      for (const call of calls.slice(from, to + 1)) assert.match(call, /freeze\(\)|thaw\(\)|createOverlays\(/)
    })
  }
})

describe('law 6', () => {
  test('at no call of a backup is a point listed that is not whole', async () => {
    await using host = await Host.create({ web01: twoGuests.web01 ?? {} })
    const seen = new Set<number>()
    const incarnation = new Incarnation(host)
    const { enter } = incarnation.plan
    const looks: Promise<void>[] = []
    incarnation.plan.enter = (call) => {
      const points = join(host.repository, 'points')
      const listed = readdirSync(host.repository).includes('points') ? readdirSync(points).length : 0
      seen.add(listed)
      if (listed > 0) looks.push(verified(host))
      return enter.call(incarnation.plan, call)
    }
    const outcome = await incarnation.backup({ ...anything, instant: 'vm' })
    incarnation.plan.enter = enter // whoever looks later would look at what is being cleared away
    await Promise.all(looks)
    assert.deepEqual(await afterBackup(host, outcome), [])
    assert.deepEqual([...seen], [0, 1])
    assert.ok(looks.length > 3, 'the point is there while its copies are still being released')
  })
})

async function verified(host: Host): Promise<void> {
  await using repository = await openRepository(host.repository)
  assert.deepEqual((await repository.verify()).damage, [])
}

describe('law 9', () => {
  test('a damaged chunk ends a restore before PreRestore: the VM has not noticed', async () => {
    await using host = await Host.create({ web01: { disks: { sda: small } } })
    const made = await new Incarnation(host).backup({ ...anything, instant: 'vm' })
    assert.ok(made.ended === 'done')
    damageFirstChunk(host.repository)
    host.world.guest('web01').writeRecord()
    const incarnation = new Incarnation(host)
    const outcome = await incarnation.restore(made.value.recoveryPoint, ['web01'], inPlace)
    assert.ok(outcome.ended === 'failed' && outcome.error instanceof Failure)
    assert.equal(outcome.error.code, 'REPOSITORY_CHUNK_CORRUPT')
    assert.ok(!incarnation.plan.calls.some((call) => /turnOff|undefine|define/.test(call)))
    assert.deepEqual(leftovers(host.world), [])
  })
})

/** Turns over a byte of the first record of the largest pack, which is the beginning of the disk. */
function damageFirstChunk(repository: string): void {
  const packs = readdirSync(join(repository, 'packs'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .map((path) => ({ path, bytes: readFileSync(path) }))
  const [largest] = packs.sort((one, other) => other.bytes.length - one.bytes.length)
  assert.ok(largest !== undefined)
  largest.bytes[1000] = (largest.bytes[1000] ?? 0) ^ 0xff
  chmodSync(largest.path, 0o600)
  writeFileSync(largest.path, largest.bytes)
}

describe('law 11', () => {
  test('no source file mounts anything, or makes a block device of an image on the host', async () => {
    const source = new URL('../../src', import.meta.url).pathname
    const banned = /['"`](?:\/\S*\/)?(mount|losetup|kpartx|guestmount|qemu-nbd|nbd-client|dmsetup)['"`]/
    for (const entry of readdirSync(source, { recursive: true, withFileTypes: true })) {
      if (!entry.name.endsWith('.ts') || entry.name.endsWith('.test.ts')) continue
      const text = await readFile(join(entry.parentPath, entry.name), 'utf8')
      const others = text.replace(".command('mount')", '') // Umbra's own verb, which shows images, not their contents
      assert.doesNotMatch(others, banned, join(entry.parentPath, entry.name))
    }
  })
})

describe('law 12', () => {
  test('a backup whose overlays could not be merged at once is still a backup, and names nothing that is not left', async () => {
    await using host = await Host.create({ web01: { disks: { sda: small } } })
    const counting = new FaultPlan()
    await new Incarnation(host, counting).backup({ ...anything, instant: 'vm' })
    const at = counting.calls.findIndex((call) => call.includes('mergeOverlay(')) + 1
    await using second = await Host.create({ web01: { disks: { sda: small } } })
    const outcome = await new Incarnation(second, new FaultPlan({ at, fault: 'fail before' })).backup({
      ...anything,
      instant: 'vm',
    })
    assert.ok(outcome.ended === 'done')
    assert.deepEqual(outcome.value.cleanup, [])
    assert.deepEqual(await afterBackup(second, outcome), [])
  })
})

describe('law 1 in the repository', () => {
  test('a kill between the marker of a draft and its undo record leaves nothing', async () => {
    const counting = new FaultPlan()
    {
      await using host = await Host.create({ web01: { disks: { sda: small } } })
      await new Incarnation(host, counting).backup({ ...anything, instant: 'vm' })
    }
    const at = counting.calls.findIndex((call) => /files\.link\(.*Z-.*json/.test(call)) + 1
    await using host = await Host.create({ web01: { disks: { sda: small } } })
    await new Incarnation(host, new FaultPlan({ at, fault: 'kill after' })).backup({ ...anything, instant: 'vm' })
    await host.recoverAll()
    const drafts = join(host.repository, 'drafts')
    assert.deepEqual(existsSync(drafts) ? readdirSync(drafts) : [], [])
  })
})
