/**
 * The stage of the live tests of backup and restore: a libvirtd of its own, real VMs of the sample guest, a repository.
 * Begun once for a test file; whatever a run before left (killed, say) is cleared away first, and all of it at the end.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync } from 'node:fs'
import { chmod, mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  buildSampleGuest,
  type GuestDisk,
  type PrivateLibvirtd,
  type SampleGuestImages,
  type SampleGuestOptions,
  sampleGuestXml,
} from '../../sample-guest/sample-guest.ts'
import { mapLimit } from '../../src/base/async.ts'
import type { Settings } from '../../src/compose.ts'
import type { GuestLimits } from '../../src/libvirt/guest-agent.ts'
import { connectHypervisor, type LibvirtHypervisor } from '../../src/libvirt/libvirt-hypervisor.ts'
import { createRepository, type Repository } from '../../src/repository/repository.ts'
import type { BackupPolicy } from '../../src/vm/method.ts'
import { ownLibvirtd } from './own-libvirtd.ts'

const needed = ['libvirtd', 'virsh', 'qemu-img', 'qemu-nbd', 'qemu-system-x86_64', 'debugfs', 'e2fsck', 'mount']
const missing =
  process.getuid?.() === 0
    ? needed.filter((program) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0)
    : ['root']
export const skipLive = missing.length > 0 && `not here: ${missing.join(', ')}`

export interface StageVm {
  readonly name: string
  readonly uuid: string
  /** Where its disks are. */
  readonly directory: string
}

export interface Stage extends AsyncDisposable {
  readonly directory: string
  readonly libvirtd: PrivateLibvirtd
  readonly images: SampleGuestImages
  readonly hypervisor: LibvirtHypervisor
  readonly settings: Settings
  readonly repository: Repository
  /** Of every backup that does not say otherwise. */
  readonly policy: Partial<BackupPolicy>
  /** What disposal ends before libvirtd: servers of disks and the like. */
  readonly owned: AsyncDisposableStack
}

export interface StageOptions {
  readonly policy?: Partial<BackupPolicy>
  readonly guestLimits?: Partial<GuestLimits>
  /** File systems of their own below the directory, by name: their size in bytes. Mounted before libvirtd begins. */
  readonly mounts?: Readonly<Record<string, number | StageMount>>
}

/** A file system on a loop device. */
export interface StageMount {
  readonly type: 'btrfs' | 'xfs'
  readonly sizeBytes: number
}

const script = join(import.meta.dirname, '../../scripts/private-libvirtd')

export async function beginStage(
  name: string,
  { guestLimits, mounts = {}, policy = {} }: StageOptions = {},
): Promise<Stage> {
  const directory = `/var/tmp/umbra-test-${name}`
  const libvirtdDirectory = `/run/umbra/test-${name}`
  await clear(directory, libvirtdDirectory)
  await using stack = new AsyncDisposableStack()
  stack.defer(() => clear(directory, libvirtdDirectory))
  await mkdir(directory, { recursive: true })
  for (const [place, mount] of Object.entries(mounts)) {
    await mkdir(join(directory, place))
    if (typeof mount === 'number') {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${mount}`, 'umbra-test', join(directory, place)])
    } else await mountLoop(directory, place, mount)
  }
  const images = await buildSampleGuest()
  const libvirtd = await ownLibvirtd(libvirtdDirectory)
  const owned = stack.use(new AsyncDisposableStack())
  const hypervisor = stack.use(await connectHypervisor(libvirtd.uri, guestLimits === undefined ? {} : { guestLimits }))
  stack.defer(() => turnOffAll(hypervisor).catch(() => undefined))
  const repository = stack.use(await createRepository(join(directory, 'repository'), { encryption: 'none' }))
  const settings = { connect: libvirtd.uri, stateDirectory: join(directory, 'state') }
  const all = stack.move()
  const dispose = () => all.disposeAsync()
  return {
    directory,
    libvirtd,
    images,
    hypervisor,
    settings,
    repository,
    policy,
    owned,
    [Symbol.asyncDispose]: dispose,
  }
}

/** Side by side, as each is waited for; what does not go is ended with libvirtd. */
async function turnOffAll(hypervisor: LibvirtHypervisor): Promise<void> {
  const running = (await hypervisor.listVms()).filter(({ power }) => power === 'running' || power === 'paused')
  await mapLimit(running, 8, ({ uuid }) => hypervisor.turnOff(uuid))
}

async function mountLoop(directory: string, place: string, { type, sizeBytes }: StageMount): Promise<void> {
  const image = join(directory, `${place}.file-system`)
  await writeFile(image, '')
  await truncate(image, sizeBytes)
  execFileSync(`mkfs.${type}`, ['-q', image], { stdio: 'ignore' })
  execFileSync('mount', ['-o', 'loop', image, join(directory, place)])
}

async function clear(directory: string, libvirtdDirectory: string): Promise<void> {
  if (existsSync(libvirtdDirectory)) {
    removeNetworks(libvirtdDirectory)
    spawnSync(script, ['stop', libvirtdDirectory, '--domains'], { stdio: 'ignore', timeout: 120_000 })
    await rm(libvirtdDirectory, { recursive: true, force: true })
  }
  const mounted = (await readFile('/proc/mounts', 'utf8')).split('\n').map((line) => line.split(' ')[1] ?? '')
  for (const place of mounted.filter((one) => one.startsWith(`${directory}/`))) {
    spawnSync('umount', ['-l', place], { stdio: 'ignore' })
  }
  await rm(directory, { recursive: true, force: true })
}

/** Bridges belong to the host and outlive the daemon. */
function removeNetworks(libvirtdDirectory: string): void {
  const uri = `qemu+unix:///system?socket=${libvirtdDirectory}/run/libvirt-sock`
  const { stdout } = spawnSync('virsh', ['-q', '-c', uri, 'net-list', '--name'], { encoding: 'utf8', timeout: 30_000 })
  for (const name of (stdout ?? '').split('\n').filter((line) => line.trim() !== '')) {
    spawnSync('virsh', ['-q', '-c', uri, 'net-destroy', name.trim()], { stdio: 'ignore', timeout: 30_000 })
  }
}

export const virsh = (stage: Stage, ...args: string[]): string =>
  execFileSync('virsh', ['-q', '-c', stage.libvirtd.uri, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  })

export function vmDirectory(stage: Stage, name: string): string {
  return join(stage.directory, 'vms', name)
}

/** Registers a VM of the sample guest; it does not run yet. */
export async function defineVm(
  stage: Stage,
  name: string,
  disks: readonly GuestDisk[],
  options: Partial<SampleGuestOptions> = {},
): Promise<StageVm> {
  const directory = vmDirectory(stage, name)
  await mkdir(directory, { recursive: true })
  const consolePath = join(stage.directory, `${name}.console`)
  const xml = sampleGuestXml({ name, images: stage.images, disks, consolePath, ...options })
  return { name, directory, uuid: await stage.hypervisor.define(xml) }
}

/** Waits until `look` answers something; asks often, and gives up after `limitMs`. */
export async function eventually<T>(what: string, look: () => Promise<T | undefined>, limitMs = 120_000): Promise<T> {
  const giveUpAt = performance.now() + limitMs
  let trouble: unknown
  for (;;) {
    try {
      const found = await look()
      if (found !== undefined) return found
    } catch (error) {
      trouble = error
    }
    if (performance.now() > giveUpAt) throw new Error(`${what}: not within ${limitMs} ms`, { cause: trouble })
    await sleep(100)
  }
}

export async function agentAnswers({ hypervisor }: Stage, { name, uuid }: { name: string; uuid: string }) {
  await eventually(`the agent of ${name}`, async () => {
    await hypervisor.guest(uuid).ping()
    return true
  })
}

export async function boot(stage: Stage, vm: StageVm): Promise<StageVm> {
  await stage.hypervisor.start(vm.uuid)
  await agentAnswers(stage, vm)
  return vm
}

/** Runs a script in the guest; rejects unless it ends well. */
export async function inside({ hypervisor }: Stage, { uuid }: { uuid: string }, text: string): Promise<string> {
  const { exitCode, stdout, stderr } = await hypervisor.guest(uuid).exec('/bin/sh', ['-c', text])
  if (exitCode !== 0) throw new Error(`${text}: ${exitCode} ${stderr}`)
  return stdout.trim()
}

export const bootOf = (stage: Stage, vm: { uuid: string }): Promise<string> =>
  inside(stage, vm, 'cat /proc/sys/kernel/random/boot_id')

/** What a guest wrote to its console so far. */
export const consoleOf = ({ directory }: Stage, { name }: { name: string }): Promise<string> =>
  readFile(join(directory, `${name}.console`), 'latin1')

/** The last record that is surely on stable storage on both disks: the one before the last that was written. */
export async function acknowledged(stage: Stage, vm: { uuid: string }): Promise<number> {
  const record = await inside(stage, vm, 'tail -c 128 /srv/b/log')
  const found = /^UMBRA1 . (\d{10})/.exec(record)
  if (found === null) throw new Error(`no record at the end of the log: ${record}`)
  return Number(found[1]) - 1
}

/** What the judge says about logs. */
export interface Verdict {
  readonly logs: readonly { readonly tornBytes: number; readonly last: number; readonly maxGapMs: number }[]
  readonly lead: number
  readonly crossConsistent: boolean
  readonly quiesced: boolean
  readonly ok: boolean
}

/** What a guest found on its disks when it booted. */
export async function verdictAtBoot(stage: Stage, vm: { uuid: string }): Promise<Verdict> {
  return JSON.parse(await inside(stage, vm, 'cat /run/verify-at-boot.json'))
}

/** The judge of the sample guest, as a program of this host. */
export async function judgeProgram({ directory, images }: Stage): Promise<string> {
  const program = join(directory, 'umbra-writer')
  if (existsSync(program)) return program
  execFileSync('debugfs', ['-R', `dump /sbin/umbra-writer ${program}`, images.root], { stdio: 'ignore' })
  await chmod(program, 0o755)
  return program
}

/** Serves a raw image over NBD as its owner would, until the stage ends. */
export async function serveNbd(stage: Stage, image: string, socket: string): Promise<void> {
  const args = ['-f', 'raw', '-k', socket, '-x', 'disk', '-t', '-e', '8', image]
  const server = spawn('qemu-nbd', args, { stdio: 'ignore' })
  const ended = new Promise((resolve) => server.on('exit', resolve))
  stage.owned.defer(async () => {
    server.kill()
    await ended
  })
  await eventually('qemu-nbd', async () => (existsSync(socket) ? true : undefined), 10_000)
}

/** A qcow2 disk on a read-only template, as cloud images are used. */
export async function onTemplate(template: string, source: string, overlay: string): Promise<void> {
  copyFileSync(source, template)
  await chmod(template, 0o444)
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', template, '-F', 'raw', overlay])
}

/** Ends a VM and all that it is. */
export async function removeVm({ hypervisor }: Stage, { uuid, directory }: StageVm): Promise<void> {
  await hypervisor.turnOff(uuid)
  await hypervisor.undefine(uuid)
  await rm(directory, { recursive: true, force: true })
}

/** Writes a file of the stage; answers its path. */
export async function writeText({ directory }: Stage, name: string, text: string): Promise<string> {
  const path = join(directory, name)
  await writeFile(path, text)
  return path
}
