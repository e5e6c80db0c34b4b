/**
 * npm run demo: a real virtual machine is backed up while it writes, lost, brought back, booted and proven intact, with
 * the commands that one would type oneself. Leaves nothing running; the files stay in .cache/demo.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { buildSampleGuest, createDisks, privateLibvirtd, sampleGuestXml } from '../sample-guest/sample-guest.ts'
import { openHypervisor } from '../src/compose.ts'
import type { GuestIntegration, Hypervisor } from '../src/vm/hypervisor.ts'

const project = dirname(dirname(fileURLToPath(import.meta.url)))
const home = join(project, '.cache', 'demo')
const vmName = 'umbra-demo'
const recordsPerSecond = 50
const bootLimitMs = 120_000

interface Verdict {
  readonly logs: readonly {
    readonly records: number
    readonly last: number
    readonly gaps: number
    readonly tornBytes: number
  }[]
  readonly lead: number
  readonly crossConsistent: boolean
  readonly quiesced: boolean
  readonly ok: boolean
}

const styled = (code: number, text: string) => (process.stdout.isTTY ? `\u001b[${code}m${text}\u001b[0m` : text)
const say = (text: string) => console.log(`\n${styled(1, text)}`)

/** Runs umbra as one would in a terminal. */
async function umbra(uri: string, ...args: string[]): Promise<void> {
  console.log(styled(2, `$ umbra ${args.join(' ')}`))
  const globals = ['--connect', uri, '--repository', join(home, 'repository'), '--state', join(home, 'state')]
  globals.push('--passphrase-file', join(home, 'passphrase'))
  const child = spawn(join(project, 'bin/umbra'), [...globals, ...args], { stdio: 'inherit' })
  const [code] = await once(child, 'exit')
  assert.equal(code, 0, `umbra ${args[0]} ended with exit code ${code}`)
}

/** The guest, once its agent answers. */
async function booted(hypervisor: Hypervisor, uuid: string): Promise<GuestIntegration> {
  const guest = hypervisor.guest(uuid)
  for (const endMs = Date.now() + bootLimitMs; ; await sleep(250)) {
    try {
      await guest.ping()
      return guest
    } catch (error) {
      if (Date.now() > endMs) throw error
    }
  }
}

async function verdict(guest: GuestIntegration, script: string): Promise<Verdict> {
  const { stdout } = await guest.exec('/bin/sh', ['-c', script])
  return JSON.parse(stdout) as Verdict
}

/** The number of the last record that the guest has on both disks by now. */
async function lastRecord(guest: GuestIntegration): Promise<number> {
  const { logs } = await verdict(guest, 'umbra-writer verify /srv/a/log /srv/b/log')
  return Math.min(...logs.map(({ last }) => last))
}

async function main(): Promise<void> {
  await rm(home, { recursive: true, force: true })
  const disksDirectory = join(home, 'disks')
  await mkdir(disksDirectory, { recursive: true })
  // A fresh one for each demo; yours is one that you can not lose.
  await writeFile(join(home, 'passphrase'), `${randomUUID()}\n`, { mode: 0o600 })

  say('1. A virtual machine: a small Debian with the real guest agent, writing to two disks')
  const images = await buildSampleGuest({ onProgress: (line) => console.log(`   ${line}`) })
  await using libvirtd = await privateLibvirtd('/run/umbra/demo')
  await using hypervisor = await openHypervisor({ connect: libvirtd.uri })
  const disks = await createDisks(images, disksDirectory, 'qcow2')
  const uuid = await hypervisor.define(
    sampleGuestXml({ name: vmName, images, disks, rate: recordsPerSecond, consolePath: join(home, 'console.log') }),
  )
  await using _vm = { [Symbol.asyncDispose]: () => removeVm(hypervisor, uuid) }
  await hypervisor.start(uuid)
  const guest = await booted(hypervisor, uuid)
  for (let records = 0; records < 100; records = await lastRecord(guest)) await sleep(250)
  console.log(
    `   it runs (${images.acceleration === 'kvm' ? 'hardware virtualisation' : 'emulated'}) and writes ${recordsPerSecond} records a second, each to disk A, then to disk B`,
  )
  await umbra(libvirtd.uri, 'vms')

  say('2. Backed up while it writes, into a repository that nobody can read without its passphrase')
  await umbra(libvirtd.uri, 'repository', 'create', join(home, 'repository'))
  const acknowledged = await lastRecord(guest)
  await umbra(libvirtd.uri, 'backup', vmName)
  const written = await lastRecord(guest)
  console.log(
    `   record ${acknowledged} was on disk before the backup, record ${written} after it: the VM went on writing`,
  )

  say('3. Lost: the VM and all its disks are destroyed')
  await removeVm(hypervisor, uuid)
  await rm(disksDirectory, { recursive: true })
  console.log(`   ${disksDirectory} is gone, and libvirt knows no ${vmName} any more`)

  say('4. Brought back')
  await umbra(libvirtd.uri, 'points')
  await umbra(libvirtd.uri, 'restore', 'latest', '--start')

  say('5. Booted, and its disks looked at from inside before anything writes to them')
  const restored = await booted(hypervisor, uuid)
  const proof = await verdict(restored, 'cat /run/verify-at-boot.json')
  const [a, b] = proof.logs
  assert(a !== undefined && b !== undefined, 'the guest looked at both disks')
  assert.equal(a.tornBytes + b.tornBytes + a.gaps + b.gaps, 0, 'no record is torn or missing')
  assert(proof.crossConsistent, 'both disks are of one instant')
  assert(a.last >= acknowledged && b.last >= acknowledged, 'everything acknowledged before the backup is there')
  console.log(`   no torn record and none missing among ${a.records + b.records}`)
  console.log(`   disk A ends with record ${a.last}, disk B with ${b.last}: both of one instant`)
  console.log(
    `   record ${acknowledged}, acknowledged before the backup, is there${proof.quiesced ? '; the writer was at rest at that instant' : ''}`,
  )

  say('Proven: backed up running, lost, restored, booted, intact.')
  console.log(`
The files are in ${home}: the repository, the console's log, the restored disks.
With your own VMs, on this host's libvirt:

   bin/umbra doctor
   bin/umbra vms
   bin/umbra repository create /path/to/repository
   bin/umbra backup --all --repository /path/to/repository
   bin/umbra restore latest --vm NAME --repository /path/to/repository

bin/umbra --help tells the rest.`)
}

async function removeVm(hypervisor: Hypervisor, uuid: string): Promise<void> {
  if ((await hypervisor.power(uuid)) === 'gone') return
  await hypervisor.turnOff(uuid)
  await hypervisor.undefine(uuid)
}

try {
  await main()
} catch (error) {
  console.error(`\ndemo: ${(error as Error).message}`)
  process.exitCode = 1
}
