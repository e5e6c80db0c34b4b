/**
 * bench/incremental: the second backup of a running VM of which 2 % has changed, in blocks of 64 KiB all over the disk; by
 * Umbra and by virtnbdbackup, on the same data in one run. Then a disk of 1 TiB, nearly empty, of which nothing has changed.
 * Run it by hand on a quiet machine: `bench/incremental [--rounds N] [--directory DIR] [--scratch DIR]`.
 */
import { execFileSync } from 'node:child_process'
import { mkdir, open, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { privateLibvirtd } from '../sample-guest/sample-guest.ts'
import { type BenchData, makeData } from './data.ts'
import { installUmbra } from './installed.ts'
import { measure } from './measure.ts'
import { sizeOf } from './stored-size.ts'

const project = dirname(dirname(fileURLToPath(import.meta.url)))
const vm = 'umbra-bench'
const blockBytes = 64 * 1024
const changedShare = 0.02

interface Place {
  /** Umbra's command. */
  readonly umbra: string
  readonly uri: string
  readonly scratch: string
}

interface Row {
  readonly peer: string
  readonly what: string
  readonly wallSeconds: number
  readonly cpuSeconds: number
  readonly peakMiB: number
  readonly storedMB: number
  readonly readMB?: number
}

const virsh = ({ uri }: Place, ...args: string[]) =>
  execFileSync('virsh', ['-q', '-c', uri, ...args], { encoding: 'utf8' })

/** A VM that runs its firmware and nothing else: nobody but this program writes to its disk. */
async function startVm(place: Place, disk: string): Promise<void> {
  const xml = `<domain type='qemu'><name>${vm}</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>
<source file='${disk}'/><target dev='vda' bus='virtio'/></disk></devices></domain>`
  const path = join(place.scratch, 'vm.xml')
  await writeFile(path, xml)
  virsh(place, 'define', path)
  virsh(place, 'start', vm)
  virsh(place, 'suspend', vm)
}

function removeVm(place: Place): void {
  for (const args of [
    ['destroy', vm],
    ['undefine', vm, '--checkpoints-metadata'],
  ]) {
    try {
      execFileSync('virsh', ['-q', '-c', place.uri, ...args], { stdio: 'ignore' })
    } catch {
      // it was not there
    }
  }
}

/** Rewrites 2 % of the blocks that hold data, through the VM's own device, with other data of the same kind; answers how many bytes. */
async function change(place: Place, { raw, sizeBytes, allocatedBytes }: BenchData, round: number): Promise<number> {
  const map = execFileSync('qemu-img', ['map', '-f', 'raw', '--output=json', raw], { maxBuffer: 1 << 28 }).toString()
  const extents = (JSON.parse(map) as { start: number; length: number; data: boolean }[]).filter(({ data }) => data)
  const blocks = extents.flatMap(({ start, length }) =>
    Array.from({ length: Math.floor(length / blockBytes) }, (_, i) => Math.ceil(start / blockBytes) + i),
  )
  const count = Math.floor((changedShare * sizeBytes) / blockBytes)
  const order = shuffled(blocks, 77 + round)
  const commands: string[] = []
  const folder = join(place.scratch, 'blocks')
  await mkdir(folder, { recursive: true })
  await using source = await open(raw)
  for (const [index, block] of order.slice(0, count).entries()) {
    const donor = order.at(-1 - index) ?? 0
    const data = Buffer.alloc(blockBytes)
    await source.read(data, 0, blockBytes, donor * blockBytes)
    data.writeUInt32LE(index + 1, 8) // so that it is no block the repository has
    const path = join(folder, String(index))
    await writeFile(path, data)
    const write = `qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -q -s ${path} ${block * blockBytes} ${blockBytes}"`
    commands.push(`qemu-monitor-command ${vm} --hmp '${write}'`)
  }
  const said = execFileSync('virsh', ['-q', '-c', place.uri], { input: commands.join('\n'), encoding: 'utf8' })
  if (/failed|error/i.test(said)) throw new Error(`the blocks could not be written: ${said.slice(0, 500)}`)
  await rm(folder, { recursive: true })
  console.log(
    `changed ${count} blocks, ${Math.round((count * blockBytes) / 1e6)} of ${Math.round(allocatedBytes / 1e6)} MB`,
  )
  return count * blockBytes
}

/** The same order for everybody: a linear congruential generator (Numerical Recipes' constants). */
function shuffled(values: readonly number[], seed: number): number[] {
  let state = seed
  const order = [...values]
  for (let left = order.length - 1; left > 0; left -= 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    const other = state % (left + 1)
    ;[order[left], order[other]] = [order[other] ?? 0, order[left] ?? 0]
  }
  return order
}

interface Peer {
  readonly name: string
  prepare(place: Place): Promise<void>
  backup(place: Place, level: 'full' | 'inc'): string[]
  readonly stored: (place: Place) => string
}

const umbra = (place: Place, ...args: string[]) => [
  place.umbra,
  ...[
    '--connect',
    place.uri,
    '--repository',
    join(place.scratch, 'repository'),
    '--state',
    join(place.scratch, 'state'),
  ],
  ...args,
]

const peers: readonly Peer[] = [
  {
    name: 'umbra',
    async prepare(place) {
      // As in a nightly job: a key file, for a passphrase takes 0.3 s on purpose.
      const keyFile = join(place.scratch, 'key')
      execFileSync(place.umbra, ['repository', 'key-file', keyFile], { stdio: 'ignore' })
      process.env.UMBRA_KEY_FILE = keyFile
      const [command = '', ...args] = umbra(place, 'repository', 'create', join(place.scratch, 'repository'))
      execFileSync(command, args, { stdio: 'ignore' })
    },
    backup: (place) => umbra(place, 'backup', vm, '--json'),
    stored: ({ scratch }) => join(scratch, 'repository'),
  },
  ...[[], ['-z']].map((compress) => ({
    name: compress.length > 0 ? 'virtnbdbackup lz4' : 'virtnbdbackup',
    prepare: async () => undefined,
    backup: ({ uri, scratch }: Place, level: 'full' | 'inc') => {
      const where = ['-U', uri.replace('qemu+unix:', 'qemu:'), '-d', vm, '-S', scratch, '-o', join(scratch, 'set')]
      return ['virtnbdbackup', ...where, '-l', level, '-n', ...compress]
    },
    stored: ({ scratch }: Place) => join(scratch, 'set'),
  })),
]

async function round(peer: Peer, place: Place, data: BenchData): Promise<Row[]> {
  removeVm(place)
  await rm(place.scratch, { recursive: true, force: true })
  await mkdir(place.scratch, { recursive: true })
  const disk = join(place.scratch, 'disk.qcow2')
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', data.raw, disk])
  await startVm(place, disk)
  await peer.prepare(place)
  const rows: Row[] = []
  let before = 0
  for (const level of ['full', 'inc'] as const) {
    if (level === 'inc') await change(place, data, 0)
    execFileSync('sync')
    const measured = await measure(peer.backup(place, level), place)
    const stored = await sizeOf(peer.stored(place))
    rows.push({
      peer: peer.name,
      what: level === 'full' ? 'full' : '2 % changed',
      ...measured,
      storedMB: (stored - before) / 1e6,
    })
    before = stored
  }
  removeVm(place)
  return rows
}

/** Nothing changed on a disk of 1 TiB. */
async function sparse(place: Place): Promise<Row[]> {
  const [own] = peers
  if (own === undefined) return []
  removeVm(place)
  await rm(place.scratch, { recursive: true, force: true })
  await mkdir(place.scratch, { recursive: true })
  const disk = join(place.scratch, 'sparse.qcow2')
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', disk, '1T'])
  for (let at = 0; at < 1024; at += 16) {
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', `write -q -P ${1 + (at % 255)} ${at}G 1M`, disk])
  }
  await startVm(place, disk)
  await own.prepare(place)
  const rows: Row[] = []
  for (const what of ['1 TiB sparse, first', '1 TiB, nothing changed']) {
    rows.push({ peer: own.name, what, ...(await measure(own.backup(place, 'inc'), place)), storedMB: 0 })
  }
  removeVm(place)
  return rows
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '1' },
    directory: { type: 'string', default: join(project, '.cache/bench') },
    scratch: { type: 'string', default: '/dev/shm' },
  },
})
execFileSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', 'time', 'virtnbdbackup'], {
  stdio: 'ignore',
})
await mkdir(values.directory, { recursive: true })
const data = await makeData(values.directory, console.log)
await using libvirtd = await privateLibvirtd('/run/umbra/bench')
const installed = await installUmbra(values.directory)
const place = { umbra: installed, uri: libvirtd.uri, scratch: join(values.scratch, 'umbra-bench') }
const rows: Row[] = []
for (let number = 0; number < Number(values.rounds); number++) {
  for (const peer of peers) rows.push(...(await round(peer, place, data)))
}
rows.push(...(await sparse(place)))
await rm(place.scratch, { recursive: true, force: true })
console.log(
  ['', 'wall s', 'cpu s', 'peak MiB', 'stored MB']
    .map((head, i) => (i === 0 ? head.padEnd(40) : head.padStart(10)))
    .join(''),
)
for (const { peer, what, wallSeconds, cpuSeconds, peakMiB, storedMB } of rows) {
  const cells = [wallSeconds.toFixed(2), cpuSeconds.toFixed(2), peakMiB.toFixed(0), storedMB.toFixed(1)]
  console.log(`${peer}, ${what}`.padEnd(40) + cells.map((cell) => cell.padStart(10)).join(''))
}
