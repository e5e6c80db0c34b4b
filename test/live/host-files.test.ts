/**
 * Files of the host and a real VM in one snapshot set, by the program itself: all or none, back again, and thawed though
 * Umbra was killed.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import {
  chmod,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import type { VmRecord } from '../../src/cli/vm-record.ts'
import { filesIn, HostApplication } from '../sim/host-application.ts'
import { runUmbra, umbraProgram } from '../umbra-process.ts'
import { beginStage, defineVm, eventually, type Stage, type StageVm, skipLive, vmDirectory } from './stage.ts'
import { hashOf, nothingIsLeft } from './stage-session.ts'

let stage: Stage
let vm: StageVm
let site: HostApplication
let environment: Record<string, string> = {}
let diskHash = ''
/** The recovery point of VM and files. */
let whole = ''

async function begin(): Promise<void> {
  stage = await beginStage('host-files', { mounts: { pool: { type: 'btrfs', sizeBytes: 300 * 1024 * 1024 } } })
  vm = await defineVm(stage, 'files-vm', await createDisks(stage.images, vmDirectory(stage, 'files-vm'), 'raw'))
  diskHash = await hashOf(join(vm.directory, 'data-a.raw'))
  site = await HostApplication.begin('site')
  await writeFile(join(site.directory, 'left out.tmp'), '')
  const { hook, directory, name } = site.settings
  const config = join(stage.directory, 'umbra.yaml')
  await writeFile(config, `files:\n- { name: ${name}, directory: ${directory}, hook: ${hook}, exclude: ['*.tmp'] }\n`)
  environment = {
    UMBRA_CONFIG: config,
    UMBRA_CONNECT: stage.libvirtd.uri,
    UMBRA_STATE: stage.settings.stateDirectory,
    UMBRA_REPOSITORY: stage.repository.location,
    HOME: stage.directory,
  }
}

async function done(...words: string[]): Promise<string> {
  const end = await runUmbra(words, environment)
  assert.equal(end.exitCode, 0, `${end.stdout}\n${end.stderr}`)
  return end.stdout
}

const pointCount = async () => (await stage.repository.listPoints()).length

describe('files of the host beside a VM', { skip: skipLive, timeout: 600_000 }, () => {
  before(begin)
  after(async () => {
    await site?.[Symbol.asyncDispose]()
    await stage?.[Symbol.asyncDispose]()
  })

  it('are told by writers and by a dry run, which freezes nothing', async () => {
    assert.match(await done('writers'), /'Umbra VM Writer'[\s\S]*'Umbra Files Writer'/)
    assert.match(await done('writers', '--detailed'), /Caption: Files\\site[\s\S]*site\/files \[files\]/)
    const told = await done('backup', '--all', '--dry-run')
    assert.match(told, /site: hook, application consistency: .*hook brings the application to rest/)
    assert.match(told, /\*\.tmp is not backed up: excluded by the configuration/)
    assert.deepEqual(await site.calls(), [])
  })

  it('are backed up in one set, frozen over the instant, in one recovery point', async () => {
    await symlink('accounts', join(site.directory, 'link'))
    await chmod(join(site.directory, 'journal'), 0o640)
    await utimes(join(site.directory, 'journal'), 1_600_000_000, 1_600_000_000)
    await truncate(join(site.directory, 'accounts'), 5_000_000)
    const text = await done('backup', '--all')
    assert.match(text, /site +hook +application +\d+ ms +files/)
    const { vms } = JSON.parse(await done('show', 'latest', '--json')) as { vms: VmRecord[] }
    assert.deepEqual(vms.map(({ name }) => name).toSorted(), ['files-vm', 'site'])
    assert.deepEqual(await site.calls(), ['freeze', 'thaw'])
    assert.equal(await site.frozen(), false)
    assert.match(await done('show', 'latest'), /site: the files of \//)
    assert.match(await done('verify'), /sound|nothing is damaged|intact/i)
    await nothingIsLeft(stage, [vm])
  })

  it('whose hook fails keep the VM from being backed up, and the other way round', async () => {
    await site.trouble('freeze fails')
    const before = await pointCount()
    const end = await runUmbra(['backup', '--all'], environment)
    assert.equal(end.exitCode, 1)
    assert.match(end.stderr, /no VM was backed up: site: .*the ledger is being closed/)
    await site.trouble('none')
    const image = join(vm.directory, 'data-b.raw')
    await rename(image, `${image}.gone`)
    const frozenBefore = (await site.calls()).length
    const without = await runUmbra(['backup', '--all'], environment)
    await rename(`${image}.gone`, image)
    assert.equal(without.exitCode, 1, without.stdout)
    assert.match(without.stderr, /data-b\.raw/)
    assert.equal((await site.calls()).length, frozenBefore, 'nothing was frozen for a set that can not be')
    assert.equal(await pointCount(), before)
    assert.equal(await site.frozen(), false)
    await nothingIsLeft(stage, [vm])
  })

  it('come back to another directory, with what was not excluded', async () => {
    const place = join(stage.directory, 'elsewhere')
    await mkdir(place)
    await done('restore', 'latest', '--vm', 'site', '--to', place)
    assert.deepEqual(await filesIn(join(place, 'site')), {
      accounts: `balance 10${'\0'.repeat(4_999_990)}`,
      journal: 'entry 1',
      link: `balance 10${'\0'.repeat(4_999_990)}`,
    })
    const { mode, mtimeMs } = await stat(join(place, 'site', 'journal'))
    assert.deepEqual([mode & 0o777, mtimeMs], [0o640, 1_600_000_000_000])
    assert.deepEqual(await readdir(place), ['site'])
    const again = await runUmbra(['restore', 'latest', '--vm', 'site', '--to', place], environment)
    assert.match(again.stderr, /exists already/)
  })

  it('are copied where they lie, on btrfs', async () => {
    const points = JSON.parse(await done('points', '--json')) as { points: readonly { id: string }[] }
    whole = points.points.at(-1)?.id ?? ''
    const archive = join(stage.directory, 'pool', 'archive')
    await mkdir(join(archive, 'deep'), { recursive: true })
    await writeFile(join(archive, 'deep', 'letter'), 'dear reader')
    const config = join(stage.directory, 'archive.yaml')
    await writeFile(config, `files:\n- { name: archive, directory: ${archive}, hook: /bin/true }\n`)
    const settings = { ...environment, UMBRA_CONFIG: config }
    const plan = await runUmbra(['backup', 'archive', '--dry-run'], settings)
    assert.match(plan.stdout, /Umbra Btrfs Provider/)
    const end = await runUmbra(['backup', 'archive'], settings)
    assert.equal(end.exitCode, 0, end.stderr)
    assert.deepEqual(await readdir(join(stage.directory, 'pool')), ['archive'], 'no copy is left')
    const place = join(stage.directory, 'from-the-archive')
    await mkdir(place)
    const back = await runUmbra(['restore', 'latest', '--to', place], settings)
    assert.equal(back.exitCode, 0, back.stderr)
    assert.equal(await readFile(join(place, 'archive', 'deep', 'letter'), 'utf8'), 'dear reader')
    await rm(archive, { recursive: true })
  })

  it('come back to their own place together with the VM, and nothing is left beside', async () => {
    await writeFile(join(site.directory, 'journal'), 'ruined')
    await writeFile(join(site.directory, 'new since'), '')
    await writeFile(join(vm.directory, 'data-a.raw'), 'ruined')
    await done('restore', whole)
    const files = await filesIn(site.directory)
    assert.deepEqual(Object.keys(files), ['accounts', 'journal', 'link'])
    assert.equal(files.journal, 'entry 1')
    assert.equal(await hashOf(join(vm.directory, 'data-a.raw')), diskHash)
    assert.deepEqual(
      (await readdir(site.base)).filter((name) => name.includes('umbra')),
      [],
    )
    await nothingIsLeft(stage, [vm])
  })

  it('are thawed by the watchdog when Umbra is killed while they are frozen', async () => {
    await site.trouble('freeze hangs')
    const child = spawn(umbraProgram, ['backup', 'site'], {
      stdio: 'ignore',
      env: { PATH: process.env.PATH, ...environment },
    })
    const { pid } = child
    assert.ok(pid)
    await eventually('the freeze', async () => ((await site.frozen()) ? true : undefined), 60_000)
    await site.trouble('none')
    process.kill(pid, 'SIGKILL')
    await eventually('the thaw', async () => ((await site.frozen()) ? undefined : true), 30_000)
    await eventually('the end of the journal', async () => {
      const left = await readdir(join(stage.settings.stateDirectory, 'journal'))
      return left.length === 0 ? true : undefined
    })
    await nothingIsLeft(stage, [vm])
  })
})
