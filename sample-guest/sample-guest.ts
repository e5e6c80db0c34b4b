// A small real Linux guest for the demo, the live tests and the benchmarks: its images, its disks, its domain XML.

import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { access, mkdir } from 'node:fs/promises'
import path from 'node:path'

export type Acceleration = 'kvm' | 'tcg'

export interface SampleGuestImages {
  directory: string
  acceleration: Acceleration
  kernel: string
  initrd: string
  root: string
  dataA: string
  dataB: string
  /** The same three on logical volumes; undefined where they could not be built (no root, no loop device). */
  lvmRoot: string | undefined
  lvmDataA: string | undefined
  lvmDataB: string | undefined
  /** Both data volumes on a thin pool of one disk; beside `lvmRoot`. */
  thinData: string | undefined
  /** Each data volume a btrfs, its subvolume `vol` mounted; beside `lvmRoot`. */
  btrfsDataA: string | undefined
  btrfsDataB: string | undefined
}

/** What the volumes are: bare file systems, classic LVM, data on thin LVM, data on btrfs. All but `plain` have their root on LVM. */
export type GuestLayout = 'plain' | 'lvm' | 'thin' | 'btrfs'

export type DiskFormat = 'raw' | 'qcow2' | 'vpc'

export interface GuestDiskPlace {
  target?: string
  bus?: 'scsi' | 'virtio'
  serial?: string
}
export type GuestDisk = GuestDiskPlace &
  ({ path: string; format: DiskFormat } | { nbd: { socket: string; exportName: string } })
export type GuestImageFile = GuestDisk & { path: string; format: DiskFormat }

export interface SampleGuestOptions {
  name: string
  images: SampleGuestImages
  disks: readonly GuestDisk[]
  consolePath: string
  uuid?: string
  memoryMiB?: number
  /** Records per second of the writer; 0 is flat out. Default 20. */
  rate?: number | 'off'
  /** After so many seconds the guest thaws by itself. Default 60. */
  freezeMaxSeconds?: number
  /** The root file system is on LVM (`lvmRoot`). */
  rootOnLvm?: boolean
  network?: string | { name: string; mac: string }
  kernelArguments?: string
  /** More XML inside `<devices>`. */
  extraDevices?: string
}

const here = import.meta.dirname

export async function buildSampleGuest(
  options: { cacheDirectory?: string; onProgress?: (line: string) => void } = {},
): Promise<SampleGuestImages> {
  const words = options.cacheDirectory === undefined ? [] : [options.cacheDirectory]
  const said = await run(path.join(here, 'build'), words, { timeoutMs: 600_000, onStderr: options.onProgress })
  const directory = said.trim().split('\n').at(-1) ?? ''
  const image = (name: string) => path.join(directory, name)
  const ifBuilt = async (name: string) =>
    access(image(name)).then(
      () => image(name),
      () => undefined,
    )
  return {
    directory,
    acceleration: await acceleration(),
    kernel: image('kernel'),
    initrd: image('initrd'),
    root: image('root.raw'),
    dataA: image('data-a.raw'),
    dataB: image('data-b.raw'),
    lvmRoot: await ifBuilt('lvm-root.raw'),
    lvmDataA: await ifBuilt('lvm-data-a.raw'),
    lvmDataB: await ifBuilt('lvm-data-b.raw'),
    thinData: await ifBuilt('thin-data.raw'),
    btrfsDataA: await ifBuilt('btrfs-data-a.raw'),
    btrfsDataB: await ifBuilt('btrfs-data-b.raw'),
  }
}

function sourcesOf(images: SampleGuestImages, layout: GuestLayout): Record<string, string | undefined> {
  const { lvmRoot: root } = images
  switch (layout) {
    case 'plain':
      return { root: images.root, 'data-a': images.dataA, 'data-b': images.dataB }
    case 'lvm':
      return { root, 'data-a': images.lvmDataA, 'data-b': images.lvmDataB }
    case 'thin':
      return { root, data: images.thinData }
    case 'btrfs':
      return { root, 'data-a': images.btrfsDataA, 'data-b': images.btrfsDataB }
  }
}

/** New disks for a VM: root, data A, data B, in this order; with the layout `thin` root, data. `lvm` is the layout `lvm`. */
export async function createDisks(
  images: SampleGuestImages,
  directory: string,
  format: DiskFormat,
  options: { lvm?: boolean; layout?: GuestLayout } = {},
): Promise<GuestImageFile[]> {
  const layout = options.layout ?? (options.lvm ? 'lvm' : 'plain')
  const sources = sourcesOf(images, layout)
  const extension = format === 'vpc' ? 'vhd' : format
  // force_size: a VHD's size is rounded to a cylinder otherwise, and the copy is not the disk any more.
  const settings = format === 'vpc' ? ['-o', 'subformat=dynamic,force_size=on'] : []
  await mkdir(directory, { recursive: true })
  const disks: GuestImageFile[] = []
  for (const [name, source] of Object.entries(sources)) {
    if (source === undefined)
      throw new Error(`the sample guest was built without its images of the layout ${layout} (${name})`)
    const file = path.join(directory, `${name}.${extension}`)
    await run('qemu-img', ['convert', '-f', 'raw', '-O', format, ...settings, source, file], { timeoutMs: 60_000 })
    disks.push({ path: file, format })
  }
  return disks
}

export function sampleGuestXml(options: SampleGuestOptions): string {
  const { name, images } = options
  const uuid = options.uuid ?? uuidOf(name)
  const kvm = images.acceleration === 'kvm'
  const cpu = kvm
    ? `<cpu mode='host-passthrough'/>`
    : // `max` would bring five-level page tables along, which cost time when every access is emulated.
      `<cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model>` +
      `<feature policy='require' name='ssse3'/><feature policy='require' name='sse4.2'/></cpu>`
  return `<domain type='${kvm ? 'kvm' : 'qemu'}'>
  <name>${xmlText(name)}</name>
  <uuid>${uuid}</uuid>
  <memory unit='MiB'>${options.memoryMiB ?? 160}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${xmlText(images.kernel)}</kernel>
    <initrd>${xmlText(images.initrd)}</initrd>
    <cmdline>${xmlText(kernelArguments(options))}</cmdline>
  </os>
  <features><acpi/><apic/>${kvm ? '' : `<tcg><tb-cache unit='MiB'>32</tb-cache></tcg>`}</features>
  ${cpu}
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>${diskElements(name, options.disks)}
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>${interfaceElement(options.network)}
    <serial type='file'><source path='${xmlText(options.consolePath)}' append='on'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
    <video><model type='none'/></video>${options.extraDevices ?? ''}
  </devices>
</domain>
`
}

function kernelArguments(options: SampleGuestOptions): string {
  return [
    'console=ttyS0 quiet loglevel=3 panic=-1',
    `root=${options.rootOnLvm ? '/dev/mapper/rootvg-root' : 'LABEL=root'}`,
    // Everything from here to umbra.* only shortens the boot, by seconds where there is no KVM.
    'no_timer_check tsc=reliable mitigations=off random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1',
    'initcall_blacklist=init_kprobe_trace,crypto_kdf108_init ipv6.disable=1 lsm= audit=0',
    `umbra.hostname=${options.name} umbra.rate=${options.rate ?? 20} umbra.freezemax=${options.freezeMaxSeconds ?? 60}`,
    options.kernelArguments ?? '',
  ]
    .join(' ')
    .trim()
}

function diskElements(name: string, disks: readonly GuestDisk[]): string {
  const taken = new Set(disks.map((disk) => disk.target))
  const nextTarget = (prefix: string) => {
    const target = [...'abcdefghijklmnop'].map((letter) => prefix + letter).find((each) => !taken.has(each))
    if (target === undefined) throw new Error('too many disks')
    taken.add(target)
    return target
  }
  const elements = disks.map((disk) => {
    const bus = disk.bus ?? 'scsi'
    const target = disk.target ?? nextTarget(bus === 'virtio' ? 'vd' : 'sd')
    const [type, format, source] =
      'nbd' in disk
        ? [
            'network',
            'raw',
            `<source protocol='nbd' name='${xmlText(disk.nbd.exportName)}'>` +
              `<host transport='unix' socket='${xmlText(disk.nbd.socket)}'/></source>`,
          ]
        : ['file', disk.format, `<source file='${xmlText(disk.path)}'/>`]
    // QEMU tells the guest no more than 20 characters of a virtio disk's serial, and 36 of a SCSI disk's.
    const serial = disk.serial ?? `${name}-${target}`.slice(bus === 'virtio' ? -20 : -36)
    return `
    <disk type='${type}' device='disk'>
      <driver name='qemu' type='${format}' discard='unmap'/>
      ${source}
      <target dev='${target}' bus='${bus}'/>
      <serial>${xmlText(serial)}</serial>
    </disk>`
  })
  return elements.join('')
}

function interfaceElement(network: SampleGuestOptions['network']): string {
  if (network === undefined) return ''
  const { name, mac } = typeof network === 'string' ? { name: network, mac: undefined } : network
  const address = mac === undefined ? '' : `<mac address='${xmlText(mac)}'/>`
  return `
    <interface type='network'>${address}<source network='${xmlText(name)}'/><model type='virtio'/></interface>`
}

let knownAcceleration: Promise<Acceleration> | undefined

/**
 * Whether this machine's KVM really runs guests. That /dev/kvm exists and opens proves nothing: under some hosts QEMU
 * aborts, or the guest hangs. So QEMU's firmware is run to its end ("No bootable device"), which takes 0.3 s.
 */
export function acceleration(): Promise<Acceleration> {
  knownAcceleration ??= firmwareRunsWithKvm().then((runs) => (runs ? 'kvm' : 'tcg'))
  return knownAcceleration
}

async function firmwareRunsWithKvm(): Promise<boolean> {
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...['-accel', 'kvm', '-cpu', 'host', '-machine', 'q35', '-m', '64', '-nodefaults', '-display', 'none'],
      ...['-no-reboot', '-chardev', 'stdio,id=log', '-device', 'isa-debugcon,iobase=0x402,chardev=log'],
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  )
  // Not waited for: a process stuck inside the kernel's KVM may take its time to die.
  child.unref()
  try {
    return await new Promise<boolean>((resolve) => {
      const limit = setTimeout(resolve, 3000, false)
      let text = ''
      child.on('error', () => resolve(false))
      child.on('close', () => resolve(text.includes('No bootable device')))
      child.stdout.on('data', (bytes: Buffer) => {
        text += bytes.toString('latin1')
        if (text.includes('No bootable device')) resolve(true)
      })
      child.on('close', () => clearTimeout(limit))
    })
  } finally {
    child.stdout.destroy()
    child.kill('SIGKILL')
  }
}

export interface PrivateLibvirtd extends AsyncDisposable {
  uri: string
  directory: string
}

/** A libvirtd of one's own (see scripts/private-libvirtd). Disposal ends it, and the VMs in it, if it was started here. */
export async function privateLibvirtd(directory = '/run/umbra/libvirtd'): Promise<PrivateLibvirtd> {
  const script = path.join(here, '..', 'scripts', 'private-libvirtd')
  const running = await run(script, ['status', directory], { timeoutMs: 30_000 }).then(
    (uri) => uri,
    () => undefined,
  )
  const uri = running ?? (await run(script, ['start', directory], { timeoutMs: 120_000 }))
  return {
    uri: uri.trim(),
    directory,
    async [Symbol.asyncDispose]() {
      if (running === undefined) await run(script, ['stop', directory, '--domains'], { timeoutMs: 120_000 })
    },
  }
}

interface RunOptions {
  timeoutMs: number
  onStderr?: ((line: string) => void) | undefined
}

/** Runs a program to its end and answers what it wrote to standard output. */
function run(program: string, words: readonly string[], options: RunOptions): Promise<string> {
  return new Promise((resolve, reject) => {
    const child: ChildProcess = spawn(program, words, {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: options.timeoutMs,
      killSignal: 'SIGKILL',
    })
    let output = ''
    let errors = ''
    child.stdout?.on('data', (bytes: Buffer) => {
      output += bytes
    })
    child.stderr?.on('data', (bytes: Buffer) => {
      errors += bytes
      const lines = bytes.toString().split('\n')
      for (const line of lines) if (line !== '') options.onStderr?.(line)
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      if (code === 0) resolve(output)
      else
        reject(
          new Error(`${path.basename(program)} ${words[0] ?? ''}: ${errors.trim() || `ended by ${signal ?? code}`}`),
        )
    })
  })
}

/** The same name gives the same UUID, so that a domain defined again is the same domain. */
function uuidOf(name: string): string {
  const hex = createHash('sha256').update(`umbra sample guest ${name}`).digest('hex')
  return [hex.slice(0, 8), hex.slice(8, 12), `5${hex.slice(13, 16)}`, `a${hex.slice(17, 20)}`, hex.slice(20, 32)].join(
    '-',
  )
}

function xmlText(text: string): string {
  return text.replace(/[<>&'"]/g, (character) => `&#${character.charCodeAt(0)};`)
}
