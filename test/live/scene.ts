/**
 * The three VMs that most tests of backup and restore play with: raw disks, qcow2 on a template, and a mixture of a VHD
 * and an NBD disk.
 */
import { copyFileSync } from 'node:fs'
import { mkdir, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import {
  beginStage,
  boot,
  defineVm,
  onTemplate,
  type Stage,
  type StageVm,
  serveNbd,
  virsh,
  vmDirectory,
  writeText,
} from './stage.ts'
import { hashOf } from './stage-session.ts'

export interface Scene extends AsyncDisposable {
  readonly stage: Stage
  /** Raw disks; writes flat out. */
  readonly web: StageVm
  /** qcow2 disks, the root on a template, a NIC on the network `lan`; writes flat out. */
  readonly db: StageVm
  /** A raw root, a VHD and an NBD disk. */
  readonly mixed: StageVm
  readonly template: string
  readonly templateHash: string
}

export const dbMac = '52:54:00:0d:0b:01'
/** A file system of its own that is too small for a disk. */
export const smallMount = 'small'

export async function beginScene(): Promise<Scene> {
  await using stack = new AsyncDisposableStack()
  const stage = stack.use(await beginStage('backup', { mounts: { [smallMount]: 24 * 1024 * 1024 } }))
  const { images } = stage
  virsh(stage, 'net-create', await writeText(stage, 'lan.xml', '<network><name>lan</name></network>'))
  const web = await defineVm(stage, 'web', await createDisks(images, vmDirectory(stage, 'web'), 'raw'), { rate: 0 })

  const [, ...data] = await createDisks(images, vmDirectory(stage, 'db'), 'qcow2')
  const root = join(vmDirectory(stage, 'db'), 'root.qcow2')
  await mkdir(join(stage.directory, 'templates'))
  const template = join(stage.directory, 'templates', 'base.raw')
  await onTemplate(template, images.root, `${root}.new`)
  await rename(`${root}.new`, root)
  const network = { name: 'lan', mac: dbMac }
  const db = await defineVm(stage, 'db', [{ path: root, format: 'qcow2' }, ...data], { rate: 0, network })

  const vhds = await createDisks(images, vmDirectory(stage, 'mixed'), 'vpc')
  const raws = await createDisks(images, vmDirectory(stage, 'mixed'), 'raw')
  const served = join(stage.directory, 'served.raw')
  copyFileSync(images.dataB, served)
  const socket = join(stage.directory, 'nbd')
  await serveNbd(stage, served, socket)
  const disks = [...raws.slice(0, 1), ...vhds.slice(1, 2), { nbd: { socket, exportName: 'disk' } }]
  const mixed = await defineVm(stage, 'mixed', disks)

  const templateHash = await hashOf(template)
  await Promise.all([web, db, mixed].map((vm) => boot(stage, vm)))
  const all = stack.move()
  return { stage, web, db, mixed, template, templateHash, [Symbol.asyncDispose]: () => all.disposeAsync() }
}

/** From here on only these run; the others stand still, which is quicker where every VM is emulated. */
export async function onlyRun({ stage, web, db, mixed }: Scene, ...names: ('web' | 'db' | 'mixed')[]): Promise<void> {
  for (const { name, uuid } of [web, db, mixed]) {
    const power = await stage.hypervisor.power(uuid)
    const runs = names.some((each) => each === name)
    if (runs && power === 'paused') await stage.hypervisor.resume(uuid)
    if (!runs && power === 'running') await stage.hypervisor.suspend(uuid)
  }
}
