/**
 * A VM that runs straight from the repository, by the real program on a real guest: its server killed, its repository
 * taken away, its data damaged, its pull killed; and at the end it is a VM like any other with all that was written in it.
 * One guest serves all cases, in this order.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { open, readdir, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { livingProcess } from '../../src/base/pid-file.ts'
import type { BlockSource } from '../../src/disk/block-device.ts'
import { connectNbd } from '../../src/disk/nbd-client.ts'
import { type InstantRecord, placesOf } from '../../src/requester/instant-record.ts'
import { runUmbra, type UmbraEnd, umbraProgram } from '../umbra-process.ts'
import {
  agentAnswers,
  beginStage,
  boot,
  defineVm,
  eventually,
  inside,
  type Stage,
  skipLive,
  virsh,
  vmDirectory,
} from './stage.ts'

const name = 'now'
let stage: Stage
let hash = ''
let packsBefore: string[] = []
let record: InstantRecord
let vm = { name, uuid: '' }
const state = () => join(stage.directory, 'instant-state')
const repository = () => join(stage.directory, 'instant-repository')

const environment = () => ({
  UMBRA_CONNECT: stage.libvirtd.uri,
  UMBRA_STATE: state(),
  UMBRA_REPOSITORY: repository(),
  UMBRA_PASSPHRASE_FILE: join(stage.directory, 'passphrase'),
  HOME: stage.directory,
})
const umbra = (...words: string[]): Promise<UmbraEnd> => runUmbra(words, environment())

async function done(...words: string[]): Promise<string> {
  const end = await umbra(...words)
  assert.equal(end.exitCode, 0, `${words.join(' ')}: ${end.stdout}\n${end.stderr}`)
  return end.stdout
}

const recordFile = (of: string) => join(state(), 'instant', `${of}.json`)
const readRecordOf = async (of: string): Promise<InstantRecord> => JSON.parse(await readFile(recordFile(of), 'utf8'))
const places = () => placesOf(state(), record)
/** From the disk, not from memory. */
const dropCaches = 'echo 3 >/proc/sys/vm/drop_caches'
const sumOf = (file: string) => inside(stage, vm, `${dropCaches}; sha256sum ${file}`)

/**
 * Has the guest read the file in the background, between `leave` and `back`, and somebody beside it, who shows that requests
 * wait. The guest's agent is not asked meanwhile: its own program lies on such a disk.
 */
async function readsThrough(leave: () => Promise<unknown>, back: () => Promise<unknown>): Promise<void> {
  const later = `(sleep 2; ${dropCaches}; sha256sum /srv/a/big) >/run/sum 2>&1 </dev/null &`
  await inside(stage, vm, `rm -f /run/sum; ${later}`)
  await leave()
  await using beside = await connectNbd({ socketPath: places().gateSocketPath, exportName: 'sdb', deadlineMs: 300_000 })
  let answered = false
  const reading = readAll(beside).then(() => {
    answered = true
  })
  await done('instant') // some moments
  assert.equal(answered, false, 'requests wait')
  assert.equal(await stage.hypervisor.power(vm.uuid), 'running')
  await back()
  await reading
  const sum = await eventually('what the guest read', async () => {
    const told = await inside(stage, vm, 'cat /run/sum')
    return told === '' ? undefined : told
  })
  assert.match(sum, new RegExp(`^${hash} `))
}

/** More than the server can have in its memory. */
async function readAll(disk: BlockSource): Promise<void> {
  const part = new Uint8Array(1024 * 1024)
  for (let at = 0; at < disk.sizeBytes; at += part.length) await disk.read(at, part)
}

async function packs(): Promise<string[]> {
  const found = await readdir(join(repository(), 'packs'), { recursive: true, withFileTypes: true })
  return found.filter((entry) => entry.isFile()).map(({ parentPath, name: file }) => join(parentPath, file))
}

async function killServer(): Promise<void> {
  const pid = await livingProcess(places().serverPidFile)
  assert.ok(pid !== undefined, 'the disks are served')
  process.kill(pid, 'SIGKILL')
  await eventually('its end', async () =>
    (await livingProcess(places().serverPidFile)) === undefined ? true : undefined,
  )
}

/** Starts the program and kills it (SIGKILL) as soon as `look` says so. */
async function killedWhen(look: () => Promise<true | undefined>, ...words: string[]): Promise<void> {
  const child = spawn(umbraProgram, words, { stdio: 'ignore', env: { PATH: process.env.PATH, ...environment() } })
  const ended = new Promise((resolve) => child.on('exit', resolve))
  await eventually('the moment to kill', look)
  child.kill('SIGKILL')
  await ended
}

/** In the middle of the largest pack that only the file has filled. Again, and it is as it was. */
async function flipAByte(): Promise<void> {
  let largest = { path: '', size: 0 }
  for (const path of await packs()) {
    if (packsBefore.includes(path)) continue
    await using file = await open(path)
    const { size } = await file.stat()
    if (size > largest.size) largest = { path, size }
  }
  await using file = await open(largest.path, 'r+')
  const byte = Buffer.alloc(1)
  const at = Math.floor(largest.size / 2)
  await file.read(byte, 0, 1, at)
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 0xff]), 0, 1, at)
}

/** A VM of which two recovery points are kept; the second one's packs hold little more than one file. */
async function beginWithPoint(): Promise<void> {
  stage = await beginStage('instant')
  await writeFile(environment().UMBRA_PASSPHRASE_FILE, 'correct horse battery staple\n', { mode: 0o600 })
  const disks = await createDisks(stage.images, vmDirectory(stage, 'origin'), 'qcow2')
  const origin = await boot(stage, await defineVm(stage, 'origin', disks, { rate: 0 }))
  await done('backup', 'origin')
  packsBefore = await packs()
  hash = await inside(
    stage,
    origin,
    "dd if=/dev/urandom of=/srv/a/big bs=1M count=24 2>/dev/null; sync; sha256sum /srv/a/big | cut -d' ' -f1",
  )
  await done('backup', 'origin')
  await stage.hypervisor.turnOff(origin.uuid)
}

describe('a VM that runs from the repository', { skip: skipLive }, () => {
  before(beginWithPoint)
  after(async () => {
    if (stage === undefined) return
    if (existsSync(recordFile(name))) await umbra('instant', 'drop', name) // the repository may be away still
    await stage[Symbol.asyncDispose]()
  })

  it('is told beforehand, and nothing is made', async () => {
    const told = await done('instant', 'latest', '--vm', 'origin', '--as', name, '--dry-run')
    assert.match(told, /make the overlay .*now-sda\.qcow2 for sda[\s\S]*start now\n[\s\S]*nothing was changed/)
    assert.equal(existsSync(recordFile(name)), false)
  })

  it('killed before its start: recover takes back what was made', async () => {
    const begun = async () => (existsSync(recordFile('victim')) ? true : undefined)
    await killedWhen(begun, 'instant', 'latest', '--as', 'victim')
    assert.match(await done('recover'), /victim had not been started/)
    assert.equal(await done('instant'), 'no VM runs from a recovery point\n')
    assert.doesNotMatch(virsh(stage, 'list', '--all', '--name'), /victim/)
    assert.deepEqual(
      (await readdir(vmDirectory(stage, 'origin'))).filter((file) => file.includes('victim')),
      [],
    )
  })

  it('starts, and the recovery point is pinned', async () => {
    await done('instant', 'latest', '--as', name)
    record = await readRecordOf(name)
    vm = { name, uuid: record.uuid }
    await agentAnswers(stage, vm)
    await inside(stage, vm, 'echo written-here >/srv/b/own; sync')
    const { points } = JSON.parse(await done('points', '--json')) as { points: { id: string; pinned?: unknown }[] }
    assert.match(JSON.stringify(points.find(({ id }) => id === record.point)), /an instant restore on/)
    assert.match(await done('instant'), /now +running +yes +running +0 of 3/)
  })

  it('its key is neither in arguments nor in an environment', async () => {
    const pid = await livingProcess(places().serverPidFile)
    for (const file of ['cmdline', 'environ']) {
      assert.doesNotMatch(await readFile(`/proc/${pid}/${file}`, 'utf8'), /correct horse/)
    }
  })

  it('server killed: its I/O waits, and goes on after recover', async () => {
    await readsThrough(killServer, async () => assert.match(await done('recover'), /serve the disks of now/))
  })

  it('repository away: its I/O waits until it is back', async () => {
    const away = `${repository()}.away`
    const leave = async () => {
      // A server that has read nothing yet: what is open or in its memory is still there when the repository is away.
      await stage.hypervisor.suspend(vm.uuid)
      await killServer()
      await done('recover')
      await rename(repository(), away)
      await stage.hypervisor.resume(vm.uuid)
    }
    await readsThrough(leave, () => rename(away, repository()))
  })

  it('a damaged chunk: an error there and nowhere else; finish names disk and offset, and loses nothing', async () => {
    await killServer()
    await flipAByte()
    await done('recover')
    await assert.rejects(sumOf('/srv/a/big'), /I\/O error|Input\/output error/)
    assert.equal(await inside(stage, vm, 'cat /srv/b/own'), 'written-here')
    const { exitCode, stderr } = await umbra('instant', 'finish', name)
    assert.equal(exitCode, 1, stderr)
    assert.match(stderr, /sdb at offset \d+: .*damaged/)
    assert.equal(await inside(stage, vm, 'cat /srv/b/own'), 'written-here')
    await flipAByte()
  })

  it('finish killed in the middle, and again: a VM of its own', async () => {
    await inside(stage, vm, 'echo written-late >/srv/a/late; sync')
    const finishing = async () => ((await readRecordOf(name)).stage === 'finishing' ? true : undefined)
    await writeFile(recordFile(name), JSON.stringify({ ...record, stage: 'running' }))
    await killedWhen(finishing, 'instant', 'finish', name)
    await done('instant', 'finish', name)
    assert.equal(existsSync(recordFile(name)), false)
    for (const text of [virsh(stage, 'dumpxml', name), virsh(stage, 'dumpxml', '--inactive', name)]) {
      assert.doesNotMatch(text, new RegExp(record.token))
    }
    for (const file of [places().serverPidFile, places().gatePidFile])
      assert.equal(await livingProcess(file), undefined)
    assert.deepEqual(await readdir(join(state(), 'i')), [])
    assert.doesNotMatch(await done('points', '--json'), /an instant restore on/)
  })

  it('turned off before it is finished: pulled in all the same, bit by bit the same', async () => {
    await done('instant', 'latest', '--as', 'resting')
    const { uuid, disks } = await readRecordOf('resting')
    await stage.hypervisor.turnOff(uuid)
    const [overlay = ''] = disks.flatMap((disk) => (disk.target === 'sdb' ? [disk.overlay] : []))
    const image = (...words: string[]) => execFileSync('qemu-img', words, { stdio: 'pipe' })
    image('convert', '-f', 'qcow2', '-O', 'raw', overlay, `${overlay}.raw`)
    await done('instant', 'finish', 'resting')
    image('compare', '-f', 'qcow2', '-F', 'raw', overlay, `${overlay}.raw`)
    assert.doesNotMatch(virsh(stage, 'dumpxml', 'resting'), /backingStore type=.network/)
  })

  it('dropped: nothing of it is left', async () => {
    await done('instant', 'latest', '--as', 'victim')
    await done('instant', 'drop', 'victim')
    assert.doesNotMatch(virsh(stage, 'list', '--all', '--name'), /victim/)
    const files = await readdir(vmDirectory(stage, 'origin'))
    assert.deepEqual(
      files.filter((file) => file.includes('victim')),
      [],
    )
    assert.deepEqual(await readdir(join(state(), 'i')), [])
  })

  it('starts again without the repository, with everything', async () => {
    await rename(repository(), `${repository()}.away`)
    await stage.hypervisor.turnOff(vm.uuid)
    await boot(stage, { ...vm, directory: '' })
    assert.match(await sumOf('/srv/a/big'), new RegExp(`^${hash} `))
    assert.equal(await inside(stage, vm, 'cat /srv/b/own /srv/a/late'), 'written-here\nwritten-late')
  })
})
