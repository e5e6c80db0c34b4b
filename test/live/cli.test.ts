/**
 * The real program against one real VM: what a person or a script does in the first half hour. One VM and one repository
 * serve all cases, in this order.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, open, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import type { Finding } from '../../src/cli/checks.ts'
import type { VmRecord } from '../../src/cli/vm-record.ts'
import { runUmbra, type UmbraEnd } from '../umbra-process.ts'
import { beginStage, defineVm, eventually, type Stage, skipLive, virsh, vmDirectory } from './stage.ts'

const vm = 'cli-web01'
const emptyDrive = `<disk type='file' device='cdrom'><target dev='sdx' bus='scsi'/><readonly/></disk>`
let stage: Stage
let uuid = ''
let pointId = ''
const repository = () => join(stage.directory, 'cli-repository')

const environment = () => ({
  UMBRA_CONNECT: stage.libvirtd.uri,
  UMBRA_STATE: join(stage.directory, 'cli-state'),
  UMBRA_REPOSITORY: repository(),
  UMBRA_PASSPHRASE_FILE: join(stage.directory, 'passphrase'),
  HOME: stage.directory,
})
const umbra = (...words: string[]): Promise<UmbraEnd> => runUmbra(words, environment())

async function done(...words: string[]): Promise<string> {
  const end = await umbra(...words)
  assert.equal(end.exitCode, 0, `${end.stdout}\n${end.stderr}`)
  return end.stdout
}

const json = async <T>(...words: string[]): Promise<T> => JSON.parse(await done(...words, '--json')) as T

async function refused(exitCode: number, message: RegExp, ...words: string[]): Promise<void> {
  const end = await umbra(...words)
  assert.equal(end.exitCode, exitCode, `${end.stdout}\n${end.stderr}`)
  assert.match(end.stderr, message)
  assert.equal(end.stderr.trimEnd().split('\n').length, 2, end.stderr)
  assert.equal(end.stdout, '')
}

async function beginWithVm(): Promise<void> {
  stage = await beginStage('cli')
  await writeFile(environment().UMBRA_PASSPHRASE_FILE, 'correct horse battery staple\n', { mode: 0o600 })
  const disks = await createDisks(stage.images, vmDirectory(stage, vm), 'qcow2')
  uuid = (await defineVm(stage, vm, disks, { extraDevices: emptyDrive })).uuid
  await stage.hypervisor.start(uuid)
  await eventually('the agent answers', async () => {
    await stage.hypervisor.guest(uuid).ping()
    return true
  })
}

const disksInUse = async (): Promise<string[]> =>
  (await stage.hypervisor.vm(uuid)).disks.flatMap(({ location }) => (location === '' ? [] : [location])).sort()

describe('the program on a real VM', { skip: skipLive }, () => {
  before(beginWithVm)
  after(() => stage?.[Symbol.asyncDispose]())

  it('doctor: everything is there, and the repository will be', async () => {
    const { healthy, checks } = await json<{ healthy: boolean; checks: Finding[] }>('doctor')
    assert.equal(healthy, true, JSON.stringify(checks, null, 2))
    const repositoryFinding = checks.find(({ check }) => check === 'repository')
    assert.match(repositoryFinding?.detail ?? '', /is not there yet/)
  })

  it('vms: how it would be backed up, and why', async () => {
    const { vms } = await json<{ vms: VmRecord[] }>('vms')
    const [found] = vms
    assert.equal(vms.length, 1)
    assert.equal(found?.name, vm)
    assert.equal(found.method, 'guest-freeze')
    const ofFreezing = found.conditions.filter(({ neededFor }) => neededFor?.includes('guest-freeze') ?? true)
    assert.ok(ofFreezing.length > 3 && ofFreezing.every(({ met }) => met))
    const unmet = found.conditions.filter(({ met }) => !met).map(({ detail }) => detail)
    assert.match(unmet.join(), /ext4 directly on/, 'why it takes no snapshot of its own')
    assert.deepEqual(found.excluded, [{ target: 'sdx', reason: 'removable medium' }])
    assert.match(await done('vms', vm), /met {4}guest agent answers: answers/)
  })

  it('writers: in the shape that administrators know', async () => {
    assert.match(await done('writers'), /Writer name: 'Umbra VM Writer'\n.*\n.*\n {3}State: \[1\] Stable\n/)
    assert.match(await done('writers', '--detailed'), /Caption: Online\\cli-web01/)
  })

  it('backup --dry-run: makes nothing', async () => {
    assert.match(await done('backup', vm, '--dry-run'), /a new repository, to be made/)
    assert.equal(existsSync(repository()), false)
  })

  it('refuses what is wrong in one line, and makes nothing', async () => {
    await refused(1, /there is no VM nobody; there are: cli-web01\n/, 'backup', 'nobody')
    await refused(
      1,
      /reaches filesystem consistency where application is required/,
      ...['backup', vm],
      '--require=application',
    )
    assert.equal(existsSync(repository()), false)
  })

  it('backup --json: the first one makes the repository', async () => {
    const { exitCode, stdout, stderr } = await umbra('backup', vm, '--json')
    assert.equal(exitCode, 0, stderr)
    assert.match(stderr, /^umbra: a new repository was made in .*, encrypted.*\n$/)
    const result = JSON.parse(stdout) as {
      recoveryPoint: string
      vms: VmRecord[]
      events: unknown[]
      cleanup: unknown[]
    }
    pointId = result.recoveryPoint
    const [backedUp] = result.vms
    assert.equal(backedUp?.method, 'guest-freeze')
    assert.equal(backedUp.consistency, 'filesystem')
    assert.ok((backedUp.freezeMs ?? 0) > 0)
    assert.deepEqual(backedUp.disks.map(({ target }) => target).sort(), ['sda', 'sdb', 'sdc'])
    assert.ok(backedUp.disks.every(({ sizeBytes = 0, readBytes = 0 }) => readBytes > 0 && readBytes <= sizeBytes))
    assert.ok(result.events.length > 5)
    assert.deepEqual(result.cleanup, [])
  })

  it('backup on ^C: puts everything back and exits with 130', async () => {
    const before = await disksInUse()
    const { exitCode, stdout, stderr } = await runUmbra(['backup', vm], environment(), 'PostSnapshot')
    assert.equal(exitCode, 130, `${stdout}\n${stderr}`)
    assert.deepEqual(await disksInUse(), before)
    assert.deepEqual(await readdir(join(environment().UMBRA_STATE, 'journal')), [])
  })

  it('points and show: what was kept', async () => {
    const { points } = await json<{ points: { id: string; vms: VmRecord[] }[] }>('points')
    assert.deepEqual(
      points.map(({ id, vms }) => [id, vms.map(({ name }) => name)]),
      [[pointId, [vm]]],
    )
    const shown = await done('show', pointId.slice(-4))
    for (const word of ['guest-freeze', 'sdx is not backed up: removable medium', 'PrepareForSnapshot']) {
      assert.ok(shown.includes(word), word)
    }
    await refused(1, /there is no recovery point 1999/, 'show', '1999')
    await refused(1, /there is no VM nobody/, 'points', 'nobody')
  })

  it('restore --dry-run: tells, and touches nothing', async () => {
    const told = await done('restore', pointId, '--dry-run')
    assert.match(told, /turn off and remove the VM cli-web01[\s\S]*nothing was changed/)
    assert.equal(await stage.hypervisor.power(uuid), 'running')
    await refused(1, /there is no VM nobody; there are: cli-web01/, 'restore', pointId, '--vm', 'nobody')
    await refused(2, /there is no network gone; there are: /, 'restore', pointId, '--network', 'default=gone')
  })

  it('restore --as --to: a second VM, off, beside the first', async () => {
    const place = join(stage.directory, 'copies')
    await mkdir(place)
    await done('restore', pointId, '--vm', uuid, '--as', 'cli-copy', '--to', place)
    assert.deepEqual((await readdir(place)).sort(), ['cli-copy-sda.qcow2', 'cli-copy-sdb.qcow2', 'cli-copy-sdc.qcow2'])
    assert.match(virsh(stage, 'domstate', 'cli-copy'), /shut off/)
    assert.equal(await stage.hypervisor.power(uuid), 'running')
  })

  it('verify: sound; and after a byte of a pack has changed, which VM, disk and offset', async () => {
    const { sound } = await json<{ sound: boolean }>('verify')
    assert.equal(sound, true)
    await changeAByte(join(repository(), 'packs'))
    const { exitCode, stdout } = await umbra('verify', pointId)
    assert.equal(exitCode, 1, stdout)
    assert.match(stdout, new RegExp(`${pointId}: cli-web01 sd[abc] at offset \\d+`))
  })
})

/** In the middle of the largest pack. */
async function changeAByte(directory: string): Promise<void> {
  const packs = (await readdir(directory, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile())
  let largest = { path: '', size: 0 }
  for (const { parentPath, name } of packs) {
    await using file = await open(join(parentPath, name))
    const { size } = await file.stat()
    if (size > largest.size) largest = { path: join(parentPath, name), size }
  }
  await using file = await open(largest.path, 'r+')
  const byte = Buffer.alloc(1)
  const at = Math.floor(largest.size / 2)
  await file.read(byte, 0, 1, at)
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 0xff]), 0, 1, at)
}
