/**
 * Two real VMs on a libvirtd of our own, for the live tests of src/libvirt: the sample guest with its two data disks,
 * running, and a small one that is off. Made once for a test file; see sample-guest/README.md.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { access, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import {
  buildSampleGuest,
  createDisks,
  type DiskFormat,
  type PrivateLibvirtd,
  type SampleGuestImages,
  sampleGuestXml,
} from '../../sample-guest/sample-guest.ts'
import type { GuestLimits } from '../../src/libvirt/guest-agent.ts'
import { connectHypervisor, type LibvirtHypervisor } from '../../src/libvirt/libvirt-hypervisor.ts'
import { makeOverlay } from '../../src/libvirt/overlay-file.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import type { HypervisorContractWorld } from '../contract/hypervisor.contract.ts'
import { ownLibvirtd } from './own-libvirtd.ts'

const needed = ['libvirtd', 'virsh', 'qemu-img', 'qemu-system-x86_64', 'debugfs', 'e2fsck']
const isMissing = (program: string) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0
const missing = process.getuid?.() === 0 ? needed.filter(isMissing) : ['root']
/** Why live tests of libvirt can not run here; false when they can. */
export const skipLive = missing.length > 0 && `not here: ${missing.join(', ')}`

const mountPoints: Record<string, string> = { sdb: '/srv/a', sdc: '/srv/b' }
const overlaySpace = 512 * 1024 * 1024

export const virsh = (uri: string, ...args: string[]): string =>
  execFileSync('virsh', ['-q', '-c', uri, ...args], { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } })

/** Waits until the agent of a VM answers. */
export async function agentAnswers(hypervisor: LibvirtHypervisor, uuid: string): Promise<void> {
  const giveUpAt = performance.now() + 90_000
  for (;;) {
    try {
      await hypervisor.guest(uuid).ping()
      return
    } catch (error) {
      if (performance.now() > giveUpAt) throw error
      await setTimeout(100)
    }
  }
}

/** Shared by whoever wants other VMs than the two of the contract. */
export interface LiveHost extends AsyncDisposable {
  readonly libvirtd: PrivateLibvirtd
  readonly images: SampleGuestImages
  readonly hypervisor: LibvirtHypervisor
  /** A directory on a file system of its own, small enough to be filled. */
  readonly overlays: string
  /** Directory of everything else. */
  readonly directory: string
}

export async function beginLiveHost(name: string, guestLimits: Partial<GuestLimits> = {}): Promise<LiveHost> {
  await using stack = new AsyncDisposableStack()
  const directory = await mkdtemp(`/var/tmp/umbra-${name}-`)
  stack.defer(() => rm(directory, { recursive: true, force: true }))
  const overlays = join(directory, 'overlays')
  await mkdir(overlays)
  // Before libvirtd: its mount namespace may not see what is mounted later.
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${overlaySpace}`, 'umbra-overlays', overlays])
  stack.defer(() => void execFileSync('umount', [overlays]))
  const libvirtd = stack.use(await ownLibvirtd(join(directory, 'libvirtd')))
  const images = await buildSampleGuest()
  const hypervisor = stack.use(await connectHypervisor(libvirtd.uri, { guestLimits }))
  const owned = stack.move()
  return { libvirtd, images, hypervisor, overlays, directory, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** The host with the two VMs of the contract. */
export interface LiveWorld extends LiveHost {
  readonly running: string
  readonly off: string
}

export async function beginLiveWorld(
  name: string,
  format: DiskFormat,
  guestLimits: Partial<GuestLimits> = { freezeMs: 5_000 },
): Promise<LiveWorld> {
  await using stack = new AsyncDisposableStack()
  const host = stack.use(await beginLiveHost(name, guestLimits))
  const { hypervisor, images, directory } = host
  const [running, off] = [`${name}-two`, `${name}-off`]
  for (const vm of [running, off]) {
    const disks = await createDisks(images, join(directory, vm), format)
    const chosen = vm === off ? disks.slice(1, 2) : disks
    const xml = sampleGuestXml({ name: vm, images, disks: chosen, consolePath: join(directory, `${vm}.console`) })
    const uuid = await hypervisor.define(xml)
    stack.defer(() => hypervisor.turnOff(uuid))
    if (vm === running) {
      await hypervisor.start(uuid)
      await agentAnswers(hypervisor, uuid)
    }
  }
  const owned = stack.move()
  return { ...host, running, off, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** A disk as the guest would see it, as a raw file; the caller removes it. */
async function flatten(world: LiveHost, { format, storage }: DiskImage): Promise<string> {
  if (!('file' in storage)) throw new Error('only files are looked into')
  const raw = join(await mkdtemp(join(world.directory, 'flat-')), 'disk.raw')
  execFileSync('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', storage.file, raw])
  return raw
}

/** A file out of the ext4 file system of an image, after its journal has been replayed. */
async function fileInside(raw: string, path: string): Promise<Buffer> {
  spawnSync('e2fsck', ['-y', '-E', 'journal_only', raw])
  const copy = `${raw}.out`
  execFileSync('debugfs', ['-R', `dump ${path} ${copy}`, raw], { stdio: 'ignore' })
  return await readFile(copy)
}

/** What the writer's judge says about the logs on two images. */
export async function verifyRecords(
  world: LiveHost,
  a: DiskImage,
  b: DiskImage,
): Promise<{ crossConsistent: boolean; quiesced: boolean; lead: number; ok: boolean }> {
  const judge = join(world.directory, 'umbra-writer')
  execFileSync('debugfs', ['-R', `dump /sbin/umbra-writer ${judge}`, world.images.root], { stdio: 'ignore' })
  execFileSync('chmod', ['+x', judge])
  const logs: string[] = []
  for (const image of [a, b]) {
    const raw = await flatten(world, image)
    await writeFile(`${raw}.log`, await fileInside(raw, '/log'))
    logs.push(`${raw}.log`)
  }
  return JSON.parse(spawnSync(judge, ['verify', ...logs], { encoding: 'utf8' }).stdout)
}

/** Reads through a layer of its own: QEMU lets nobody write to what lies beneath, not even to a raw image. */
async function openReader(path: string, { format, storage }: DiskImage): Promise<AsyncDisposable> {
  if (!('file' in storage)) throw new Error('only files are opened')
  execFileSync('qemu-img', ['create', '-q', '-u', '-f', 'qcow2', '-b', storage.file, '-F', format, path, '64M'])
  execFileSync('qemu-nbd', [
    '-r',
    '-t',
    '-f',
    'qcow2',
    '-k',
    `${path}.socket`,
    '--pid-file',
    `${path}.pid`,
    '--fork',
    path,
  ])
  const pid = Number(await readFile(`${path}.pid`, 'utf8'))
  return {
    async [Symbol.asyncDispose]() {
      process.kill(pid)
      while (await exists(`/proc/${pid}`)) await setTimeout(20)
    },
  }
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  )

/** The world as the contract of hypervisors wants it. Disposal leaves the VMs: they serve the next test as well. */
export function contractWorld(world: LiveWorld): HypervisorContractWorld {
  const { hypervisor } = world
  const inside = async (vm: string, script: string) => {
    const { uuid } = await hypervisor.vm(vm)
    const result = await hypervisor.guest(uuid).exec('/bin/sh', ['-c', script])
    if (result.exitCode !== 0) throw new Error(`${script}: ${result.stderr}`)
    return result.stdout.trim()
  }
  let paths = 0
  return {
    hypervisor,
    twoDisks: { name: world.running, targets: ['sdb', 'sdc'] },
    off: { name: world.off, target: 'sda' },
    freshPath: (name) => join(world.overlays, `${process.pid}-${++paths}-${name}`),
    fileExists: exists,
    createFile: (path) => writeFile(path, 'something else'),
    removeFile: (path) => rm(path),
    writeInside: async (vm, target, marker) => {
      await inside(vm, `echo ${marker} > ${mountPoints[target]}/${marker} && sync`)
    },
    contains: async (image, marker) => {
      const raw = await flatten(world, image)
      const found = (await readFile(raw)).includes(marker)
      await rm(raw)
      return found
    },
    bootOf: (vm) => inside(vm, 'cat /proc/sys/kernel/random/boot_id'),
    programs: { flood: { path: '/bin/sh', args: ['-c', 'head -c 1500000 /dev/zero'] } },
    strayOverlay: async (path, { format, storage }) => {
      if (!('file' in storage)) throw new Error('only for files')
      const backing = ['-u', '-b', storage.file, '-F', format]
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...backing, path, '64M'])
    },
    openReader: (image) => openReader(join(world.directory, 'reader'), image),
    verifyRecords: (a, b) => verifyRecords(world, a, b),
    loseNextFreeze: async (vm) => {
      // Longer than the limit of a freeze in this world. The switch goes by itself, as the agent is deaf meanwhile.
      await inside(vm, 'echo 8 > /run/hook-slow; (sleep 5; rm -f /run/hook-slow) >/dev/null 2>&1 &')
    },
    thawBySelf: async (vm, afterMs) => {
      const thaw = 'for m in $(awk \'$3 == "ext4" { print $2 }\' /proc/mounts); do fsfreeze --unfreeze $m; done'
      const wait = `until [ -e /run/freeze-watchdog ]; do sleep 0.05; done; sleep ${afterMs / 1000}`
      await inside(vm, `(${wait}; for i in 1 2 3 4; do ${thaw}; sleep 0.1; done) >/dev/null 2>&1 &`)
      return { [Symbol.asyncDispose]: () => Promise.resolve() }
    },
    silenceAgent: async (vm) => {
      const { uuid } = await hypervisor.vm(vm)
      const stop = '(sleep 0.3; kill -STOP $(pidof qemu-ga); sleep 45; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 &'
      await inside(vm, stop)
      const answers = () =>
        hypervisor
          .guest(uuid)
          .ping()
          .then(
            () => true,
            () => false,
          )
      while (await answers()) await setTimeout(100)
      return { [Symbol.asyncDispose]: () => agentAnswers(hypervisor, uuid) }
    },
    fillHost: async (vm) => {
      const { uuid } = await hypervisor.vm(vm)
      const filler = join(world.overlays, 'filler')
      spawnSync('dd', ['if=/dev/zero', `of=${filler}`, 'bs=64k'])
      // The writer's own next records are enough.
      for (let tries = 0; (await hypervisor.power(uuid)) !== 'paused'; tries += 1) {
        if (tries > 300) throw new Error('the VM did not meet the full disk')
        await setTimeout(100)
      }
      return { [Symbol.asyncDispose]: () => rm(filler) }
    },
    kill: async (vm) => {
      const { uuid } = await hypervisor.vm(vm)
      process.kill(
        Number(await readFile(join(world.libvirtd.directory, 'run', 'qemu', `${vm}.pid`), 'utf8')),
        'SIGKILL',
      )
      while ((await hypervisor.power(uuid)) !== 'off') await setTimeout(50)
    },
    makeWritableCopy: (path, base) => makeOverlay(path, base, undefined),
    writeToCopy: async (vm, serial, marker) => {
      // Far from everything that a file system keeps, so that no other disk has it by accident.
      const found = `for d in /sys/block/sd*; do grep -qs ${serial} $d/device/vpd_pg80 && echo /dev/\${d##*/}; done`
      const write = `dd of=$1 bs=4096 seek=2000 conv=notrunc,fsync 2>/dev/null`
      const wait = `for i in $(seq 50); do set -- $(${found}); [ -b "$1" ] && break; sleep 0.1; done; [ -b "$1" ]`
      await inside(vm, `${wait} && echo ${marker} | ${write}`)
    },
    removeNetwork: async (name) => {
      virsh(world.libvirtd.uri, 'net-destroy', name)
      virsh(world.libvirtd.uri, 'net-undefine', name)
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
}
