/**
 * Incremental for ever on a real VM that writes at random all the time: twenty backups by change tracking, each compared
 * byte for byte with an independent read of the same instant, and all of them again at the end, when every third was
 * removed and what nobody needs was collected. Beside the qcow2 disks a raw one, which is compared by hash.
 * Takes long: begun before the others.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { recover } from '../../src/compose.ts'
import type { BlockSource } from '../../src/disk/block-device.ts'
import type { Repository } from '../../src/repository/repository.ts'
import { killedAt, qemuOf } from './crash-tests.ts'
import { around, duringTransfer } from './hooks.ts'
import {
  beginStage,
  boot,
  defineVm,
  eventually,
  inside,
  type Stage,
  type StageVm,
  skipLive,
  virsh,
  vmDirectory,
} from './stage.ts'
import { type BackedUpVm, backUp, nothingIsLeft } from './stage-session.ts'

const generations = 21 // a full one and twenty incrementals
const noiseMiB = 96

describe('incremental backups of a VM that writes at random', { skip: skipLive, timeout: 600_000 }, () => {
  let stage: Stage
  let vm: StageVm
  before(async () => {
    stage = await beginStage('incremental')
    const directory = vmDirectory(stage, 'inc')
    const disks = await createDisks(stage.images, directory, 'qcow2')
    const noise = join(directory, 'noise.qcow2')
    const raw = join(directory, 'noise.raw')
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', noise, `${noiseMiB}M`])
    execFileSync('qemu-img', ['create', '-q', '-f', 'raw', raw, '32M'])
    vm = await defineVm(stage, 'inc', [...disks, { path: noise, format: 'qcow2' }, { path: raw, format: 'raw' }], {
      rate: 20,
    })
    await boot(stage, vm)
    for (const [target, mebibytes] of [
      ['sdd', noiseMiB],
      ['sde', 32],
    ] as const) {
      await inside(stage, vm, scribbler(`inc-${target}`, mebibytes))
    }
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })

  it('are each equal to an independent read of their instant, also when others are gone', async (t) => {
    const made: IndependentRead[] = []
    for (let generation = 0; generation < generations; generation += 1) {
      const read = await independentlyRead(stage, vm, stage.repository, async (repository) => {
        const result = await backUp(stage, [vm.name], { repository, policy: { method: 'guest-freeze' } })
        const [told] = result.vms
        for (const { target, how, because } of told?.disks ?? []) {
          const wanted = generation === 0 ? 'whole' : target === 'sde' ? 'compared' : 'changed'
          assert.equal(how, wanted, `generation ${generation}, ${target}: ${because}`)
          if (target === 'sde') assert.match(because ?? '', /raw disks have no bitmaps/)
        }
        const noise = told?.disks.find(({ target }) => target === 'sdd')
        if (generation > 0) assert.ok((noise?.readBytes ?? 0) < (noiseMiB * 1024 * 1024) / 2, 'little of it was read')
        if (generation < 3)
          t.diagnostic(
            `frozen ${told?.freezeMs} ms; ${told?.disks.map((d) => `${d.target} ${d.readBytes}`).join(', ')}`,
          )
        return result.recoveryPoint
      })
      await assertHolds(stage.repository, vm, read)
      made.push(read)
      assert.ok(checkpointsOf(stage, vm).length <= 1, 'points of change tracking do not pile up')
    }
    for (const { point } of made.filter((_, index) => index % 3 === 0)) await stage.repository.deletePoint(point)
    await stage.repository.collect({ delayMs: 0 })
    for (const kept of made.filter((_, index) => index % 3 !== 0)) await assertHolds(stage.repository, vm, kept)
    assert.deepEqual((await stage.repository.verify()).damage, [])
    await nothingIsLeft(stage, [vm])
  })

  const moments = ['job begun', 'transfer', 'point committed', 'stamp kept'] as const
  for (const at of moments) {
    it(`go on rightly after kill -9 of Umbra: ${at}`, async () => {
      const points = (await stage.repository.listPoints()).length
      await killedAt(stage, { at, vm: vm.name })
      assert.deepEqual(
        (await recover(stage.settings)).flatMap(({ failed }) => failed),
        [],
      )
      await eventually('the guest', async () =>
        (await stage.hypervisor.guest(vm.uuid).freezeStatus()) === 'thawed' ? true : undefined,
      )
      const committed = at === 'point committed' || at === 'stamp kept'
      assert.equal((await stage.repository.listPoints()).length, points + (committed ? 1 : 0))
      assert.ok(checkpointsOf(stage, vm).length <= 2)
      const [told, read] = await backUpWatched()
      assert.equal(told.disks.find(({ target }) => target === 'sdd')?.how, 'changed', 'the tracking outlived the kill')
      await assertHolds(stage.repository, vm, read)
      assert.equal(checkpointsOf(stage, vm).length, 1)
      await nothingIsLeft(stage, [vm])
    })
  }

  it('are whole again, and right, after kill -9 of QEMU in the midst of the transfer', async () => {
    const repository = duringTransfer(stage.repository, async () => {
      process.kill(await qemuOf(stage, vm.name), 'SIGKILL')
      await eventually('its end', async () => ((await stage.hypervisor.power(vm.uuid)) === 'off' ? true : undefined))
    })
    await assert.rejects(backUp(stage, [vm.name], { repository }))
    await nothingIsLeft(stage, [vm])
    await boot(stage, vm)
    const [told, read] = await backUpWatched()
    for (const { target, how, because } of told.disks) {
      assert.notEqual(how, 'changed', `${target} can not be trusted`)
      assert.ok(because !== undefined && because.length > 10, `${target} says why: ${because}`)
    }
    await assertHolds(stage.repository, vm, read)
    const [again, readAgain] = await backUpWatched()
    assert.equal(again.disks.find(({ target }) => target === 'sdd')?.how, 'changed', 'tracking begins anew')
    await assertHolds(stage.repository, vm, readAgain)
    assert.equal(checkpointsOf(stage, vm).length, 1)
  })

  async function backUpWatched(): Promise<[BackedUpVm, IndependentRead]> {
    let told: BackedUpVm | undefined
    const read = await independentlyRead(stage, vm, stage.repository, async (repository) => {
      const result = await backUp(stage, [vm.name], { repository, policy: { method: 'guest-freeze' } })
      told = result.vms[0]
      return result.recoveryPoint
    })
    assert.ok(told !== undefined)
    return [told, read]
  }
})

interface IndependentRead {
  readonly point: string
  readonly digests: ReadonlyMap<string, string>
}

/** Rewrites the disk of that serial at random for as long as the guest lives: data and, now and then, zeros. */
function scribbler(serial: string, mebibytes: number): string {
  const number = '$(od -An -N2 -tu2 /dev/urandom)'
  const write = (source: string) =>
    `dd if=/dev/${source} of=$disk bs=4096 seek=$((n % ${mebibytes * 256 - 64})) count=$((1 + n % 40)) conv=notrunc,fsync`
  const loop = `n=${number}; ${write('urandom')}; n=${number}; ${write('zero')}; sleep 0.2`
  return `for one in /sys/block/sd*; do grep -q ${serial} $one/device/vpd_pg80 && disk=/dev/\${one##*/}; done; test -b $disk
( while :; do ${loop}; done ) >/dev/null 2>&1 &`
}

export const checkpointsOf = (stage: Stage, vm: StageVm): string[] =>
  virsh(stage, 'checkpoint-list', vm.uuid, '--name')
    .split('\n')
    .filter((line) => line.trim() !== '')

/**
 * Makes a backup and, while its copies exist, reads them past Umbra: every export of the backup job, by QEMU's own
 * client. Answers the digests by stream.
 */
export async function independentlyRead(
  stage: Stage,
  vm: StageVm,
  repository: Repository,
  makeBackup: (repository: Repository) => Promise<string>,
): Promise<IndependentRead> {
  const digests = new Map<string, string>()
  const directory = join(stage.directory, 'independent')
  await mkdir(directory, { recursive: true })
  const openStream = async (call: () => Promise<unknown>, [name]: readonly unknown[]) => {
    const target = /\/disks\/(\w+)$/.exec(String(name))?.[1]
    if (target !== undefined)
      digests.set(String(name), await digestOfExport(stage, vm, target, join(directory, target)))
    return call()
  }
  const watched = around(repository, { beginPoint: async (call) => around((await call()) as object, { openStream }) })
  const point = await makeBackup(watched)
  await rm(directory, { recursive: true })
  return { point, digests }
}

async function digestOfExport(stage: Stage, vm: StageVm, target: string, file: string): Promise<string> {
  const socket = /socket='([^']+)'/.exec(virsh(stage, 'backup-dumpxml', vm.uuid))?.[1]
  const address = `nbd+unix:///${target}?socket=${socket}`
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', '-W', '-m', '8', address, file])
  await using image = await open(file)
  const { size } = await image.stat()
  return await digest(size, async (offset, buffer) => void (await image.read(buffer, 0, buffer.length, offset)))
}

async function assertHolds(repository: Repository, vm: StageVm, { point, digests }: IndependentRead): Promise<void> {
  const found = await repository.point(point)
  assert.ok(digests.size > 0)
  for (const [name, expected] of digests) {
    await using source: BlockSource = await found.openStream(name)
    const actual = await digest(source.sizeBytes, (offset, buffer) => source.read(offset, buffer))
    assert.equal(actual, expected, `${point}: ${name} of ${vm.name} is not what it was at its instant`)
  }
}

const zeros = Buffer.alloc(64 * 1024)

/** Of size, places and bytes; a block of zeros is told by its absence, as most blocks are. */
async function digest(sizeBytes: number, read: (offset: number, buffer: Buffer) => Promise<void>): Promise<string> {
  const hash = createHash('sha1').update(`${sizeBytes}\n`)
  const buffer = Buffer.alloc(4 * 1024 * 1024)
  for (let offset = 0; offset < sizeBytes; offset += buffer.length) {
    const part = buffer.subarray(0, Math.min(buffer.length, sizeBytes - offset))
    await read(offset, part)
    for (let at = 0; at < part.length; at += zeros.length) {
      const block = part.subarray(at, at + zeros.length)
      if (!zeros.subarray(0, block.length).equals(block)) hash.update(`${offset + at}\n`).update(block)
    }
  }
  return hash.digest('hex')
}
