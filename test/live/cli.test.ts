/**
 * The real program against one real VM: what a person or a script does in its first half hour. One VM and one
 * repository serve all cases, in this order.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { runUmbra, type UmbraEnd } from '../umbra-process.ts'
import { beginStage, defineVm, eventually, type Stage, skipLive, vmDirectory } from './stage.ts'

const vm = 'cli-web01'
let stage: Stage
const pointId = ''
const repository = () => join(stage.directory, 'cli-repository')

const umbra = (...words: string[]): Promise<UmbraEnd> =>
  runUmbra(words, {
    UMBRA_CONNECT: stage.libvirtd.uri,
    UMBRA_STATE: join(stage.directory, 'cli-state'),
    UMBRA_REPOSITORY: repository(),
    HOME: stage.directory,
  })

async function done(...words: string[]): Promise<string> {
  const end = await umbra(...words)
  assert.equal(end.exitCode, 0, `${end.stdout}\n${end.stderr}`)
  return end.stdout
}

// biome-ignore lint/suspicious/noExplicitAny: what a script reads; each case says what it expects of it
const json = async (...words: string[]): Promise<any> => JSON.parse(await done(...words, '--json'))

describe('umbra', { skip: skipLive }, () => {
  before(async () => {
    stage = await beginStage('cli')
    const [, dataA, dataB] = await createDisks(stage.images, vmDirectory(stage, vm), 'qcow2')
    const root = { path: stage.images.root, format: 'raw' as const }
    assert.ok(dataA !== undefined && dataB !== undefined)
    const cdrom = `<disk type='file' device='cdrom'><target dev='sdx' bus='scsi'/><readonly/></disk>`
    const disks = await createDisks(stage.images, vmDirectory(stage, vm), 'qcow2')
    assert.ok(root.path !== '')
    const { uuid } = await defineVm(stage, vm, disks, { extraDevices: cdrom })
    await stage.hypervisor.start(uuid)
    await eventually('the agent answers', async () => {
      await stage.hypervisor.guest(uuid).ping()
      return true
    })
  })
  after(() => stage?.[Symbol.asyncDispose]())

  it('doctor: everything is there, and the repository will be', async () => {
    const { healthy, checks } = await json('doctor')
    assert.equal(healthy, true)
    const names = checks.map(({ check }: { check: string }) => check)
    for (const name of ['libvirt', 'qemu-storage-daemon', 'state directory', 'repository', 'sessions']) {
      assert.ok(names.includes(name), name)
    }
  })
})
