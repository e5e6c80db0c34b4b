/**
 * bench/backup: full backup, verify and restore of one disk, by Umbra and by its peers, on the same data in one run,
 * printed as ratios. Run it by hand on a quiet machine: `bench/backup [--rounds N] [--directory DIR] [--scratch DIR]
 * [PEER...]`.
 */
import { execFileSync } from 'node:child_process'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { privateLibvirtd } from '../sample-guest/sample-guest.ts'
import { type BenchData, makeData } from './data.ts'
import { installUmbra } from './installed.ts'
import { type Measured, measure } from './measure.ts'
import { sizeOf } from './stored-size.ts'

const project = dirname(dirname(fileURLToPath(import.meta.url)))
const operations = ['full', 'verify', 'restore'] as const
type Operation = (typeof operations)[number]

interface Place {
  readonly data: BenchData
  /** Umbra's command. */
  readonly umbra: string
  /** Empty at the start of each round. */
  readonly scratch: string
  /** Where disks are restored to; empty at the start of each round. */
  readonly out: string
  readonly uri: string
}

/** One way to back up a disk; each operation is a command line, run once per round in this order. */
interface Peer {
  readonly name: string
  readonly packages: readonly string[]
  prepare?(place: Place): Promise<void>
  readonly env?: (place: Place) => NodeJS.ProcessEnv
  full?(place: Place): string[]
  verify?(place: Place): string[]
  restore?(place: Place): string[]
  /** Where the restored disk lies, to be compared in the first round. */
  restored(place: Place): Promise<string>
  stored(place: Place): string
}

const vm = 'umbra-bench'
const umbraCommand = ({ umbra, scratch, uri }: Place, ...args: string[]) => [
  umbra,
  ...['--connect', uri, '--repository', join(scratch, 'repository'), '--state', join(scratch, 'state'), ...args],
]

const peers: readonly Peer[] = [
  {
    name: 'umbra',
    packages: [],
    async prepare(place) {
      const args = ['repository', 'create', join(place.scratch, 'repository'), '--no-encryption']
      execFileSync(place.umbra, args, { stdio: 'ignore' })
    },
    full: (place) => umbraCommand(place, 'backup', vm),
    verify: (place) => umbraCommand(place, 'verify'),
    restore: (place) => umbraCommand(place, 'restore', 'latest', '--as', `${vm}-copy`, '--to', place.out),
    restored: async ({ out }) => join(out, `${vm}-copy-vda.raw`),
    stored: ({ scratch }) => join(scratch, 'repository'),
  },
  {
    // Not a peer: what no program can beat on this machine; see limit.ts.
    name: 'limit',
    packages: [],
    full: ({ data }) => [process.execPath, join(project, 'bench/limit.ts'), 'read', data.raw],
    restore: ({ data, out }) => [
      process.execPath,
      join(project, 'bench/limit.ts'),
      'write',
      data.raw,
      join(out, 'disk.raw'),
    ],
    restored: async ({ out }) => join(out, 'disk.raw'),
    stored: ({ out }) => out,
  },
  {
    // Nor this: the usual way to write the same bytes, through the kernel's cache, and to wait until they are on the disk.
    name: 'cp and sync',
    packages: [],
    restore: ({ data, out }) => [
      ...['sh', '-c', 'cp --sparse=always "$0" "$1" && sync "$1"'],
      ...[data.raw, join(out, 'disk.raw')],
    ],
    restored: async ({ out }) => join(out, 'disk.raw'),
    stored: ({ out }) => out,
  },
  {
    name: 'qemu-img zstd',
    packages: [],
    full: ({ data, scratch }) => [
      'qemu-img',
      'convert',
      '-c',
      '-f',
      'raw',
      '-O',
      'qcow2',
      '-o',
      'compression_type=zstd',
      '-m',
      '8',
      '-W',
      data.raw,
      join(scratch, 'disk.qcow2'),
    ],
    restore: ({ scratch }) => [
      'qemu-img',
      'convert',
      '-m',
      '8',
      '-f',
      'qcow2',
      '-O',
      'raw',
      join(scratch, 'disk.qcow2'),
      join(scratch, 'disk.raw'),
    ],
    restored: async ({ scratch }) => join(scratch, 'disk.raw'),
    stored: ({ scratch }) => join(scratch, 'disk.qcow2'),
  },
  {
    name: 'restic',
    packages: ['restic'],
    env: ({ scratch }) => ({
      RESTIC_PASSWORD: 'bench',
      RESTIC_REPOSITORY: join(scratch, 'r'),
      RESTIC_CACHE_DIR: join(scratch, 'cache'),
    }),
    async prepare(place) {
      execFileSync('restic', ['-q', 'init', '--repository-version', '2'], {
        env: { ...process.env, ...this.env?.(place) },
      })
    },
    full: ({ data }) => ['restic', '-q', '--compression', 'auto', 'backup', data.raw],
    verify: () => ['restic', '-q', 'check', '--read-data'],
    restore: ({ out }) => ['restic', '-q', 'restore', 'latest', '--target', out],
    restored: async ({ data, out }) => join(out, data.raw),
    stored: ({ scratch }) => join(scratch, 'r'),
  },
  {
    name: 'borg',
    packages: ['borgbackup'],
    env: ({ scratch }) => ({ BORG_PASSPHRASE: 'bench', BORG_BASE_DIR: join(scratch, 'home') }),
    async prepare(place) {
      execFileSync('borg', ['init', '-e', 'repokey-blake2', join(place.scratch, 'r')], {
        env: { ...process.env, ...this.env?.(place) },
      })
    },
    full: ({ data, scratch }) => ['borg', 'create', `${join(scratch, 'r')}::a`, data.raw],
    verify: ({ scratch }) => ['borg', 'check', '--verify-data', join(scratch, 'r')],
    restore: ({ scratch, out }) => ['sh', '-c', `cd ${out} && exec borg extract --sparse ${join(scratch, 'r')}::a`],
    restored: async ({ data, out }) => join(out, data.raw),
    stored: ({ scratch }) => join(scratch, 'r'),
  },
  {
    name: 'virtnbdbackup',
    packages: ['virtnbdbackup'],
    // Its default: no compression, no checks, no deduplication.
    full: ({ scratch, uri }) => {
      const where = ['-U', plainUri(uri), '-d', vm, '-S', scratch, '-o', join(scratch, 'set')]
      return ['virtnbdbackup', ...where, '-l', 'copy', '--raw', '-n']
    },
    restore: ({ scratch, out, uri }) => {
      return ['virtnbdrestore', '-U', plainUri(uri), '-i', join(scratch, 'set'), '-o', out, '-n']
    },
    restored: async ({ out }) => join(out, 'disk.raw'),
    stored: ({ scratch }) => join(scratch, 'set'),
  },
  {
    name: 'virtnbdbackup lz4',
    packages: ['virtnbdbackup'],
    full: ({ scratch, uri }) => {
      const where = ['-U', plainUri(uri), '-d', vm, '-S', scratch, '-o', join(scratch, 'set')]
      return ['virtnbdbackup', ...where, '-l', 'copy', '-z', '-n']
    },
    restored: async () => '',
    stored: ({ scratch }) => join(scratch, 'set'),
  },
]

/** virtnbdbackup takes every address with a transport for one that needs a password. */
const plainUri = (uri: string) => uri.replace('qemu+unix:', 'qemu:')

/** The VM whose disk is backed up: it never runs, so that nothing changes its disk between two peers. */
function defineVm(uri: string, data: BenchData, scratch: string): Promise<void> {
  const xml = `<domain type='qemu'><name>${vm}</name><uuid>5b1d9e0c-8f8e-4b0e-9a9e-0f2b6f1d7c01</uuid><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='${data.raw}'/><target dev='vda' bus='virtio'/></disk></devices></domain>`
  const path = join(scratch, 'vm.xml')
  return writeFile(path, xml).then(() => {
    execFileSync('virsh', ['-c', uri, 'define', path], { stdio: 'ignore' })
  })
}

/**
 * The same for everybody: the disk and the repository are in memory, whoever has written past the kernel's cache or not, and
 * so much memory is free that the machine really has: one that is virtual pays for what it takes anew.
 */
function warm({ data, scratch }: Place): void {
  execFileSync('sync')
  execFileSync('sh', ['-c', 'find "$@" -type f -exec cat {} + > /dev/null', 'sh', data.raw, scratch])
  const fill = '/dev/shm/umbra-bench-fill'
  execFileSync('dd', ['if=/dev/zero', `of=${fill}`, 'bs=4M', 'count=768'], { stdio: 'ignore' })
  execFileSync('rm', [fill])
}

/** One round of one peer. In the first round the restored disk is compared byte by byte. */
async function round(
  peer: Peer,
  place: Place,
  compare: boolean,
): Promise<Partial<Record<Operation, Measured>> & { storedMB: number }> {
  for (const directory of [place.scratch, place.out]) {
    await rm(directory, { recursive: true, force: true })
    await mkdir(directory, { recursive: true })
  }
  await defineVm(place.uri, place.data, place.scratch)
  await peer.prepare?.(place)
  const env = peer.env?.(place)
  const results: Partial<Record<Operation, Measured>> = {}
  let storedMB = 0
  for (const operation of operations) {
    const command = peer[operation]?.(place)
    if (command === undefined) continue
    warm(place)
    results[operation] = await measure(command, { scratch: place.scratch, ...(env === undefined ? {} : { env }) })
    if (operation === 'full') storedMB = (await sizeOf(peer.stored(place))) / 1e6
  }
  if (compare && peer.restore !== undefined) execFileSync('cmp', [place.data.raw, await peer.restored(place)])
  if (peer.name === 'umbra') execFileSync('virsh', ['-c', place.uri, 'undefine', `${vm}-copy`], { stdio: 'ignore' })
  return { ...results, storedMB }
}

const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN

function report(results: ReadonlyMap<string, Awaited<ReturnType<typeof round>>[]>): void {
  const line = (cells: (string | number)[]) =>
    console.log(cells.map((cell, i) => String(cell)[i < 2 ? 'padEnd' : 'padStart'](i < 2 ? 15 : 11)).join(''))
  line(['', '', 'wall s', 'cpu s', 'others s', 'peak MiB', 'stored MB', 'umbra is'])
  for (const operation of operations) {
    const walls = (name: string) => results.get(name)?.flatMap((one) => one[operation]?.wallSeconds ?? []) ?? []
    const own = median(walls('umbra'))
    for (const [name, rounds] of results) {
      const runs = rounds.flatMap((one) => one[operation] ?? [])
      if (runs.length === 0) continue
      const of = (key: keyof Measured) => median(runs.map((run) => run[key]))
      const stored = operation === 'full' ? median(rounds.map(({ storedMB }) => storedMB)).toFixed(0) : ''
      const ratio = name === 'umbra' ? '' : `${(of('wallSeconds') / own).toFixed(2)} x as fast`
      line([
        operation,
        name,
        of('wallSeconds').toFixed(2),
        of('cpuSeconds').toFixed(2),
        of('otherSeconds').toFixed(1),
        of('peakMiB').toFixed(0),
        stored,
        ` ${ratio}`,
      ])
    }
  }
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '1' },
      directory: { type: 'string', default: join(project, '.cache/bench') },
      // Repositories lie on a disk, as one's own; in memory (/dev/shm) the disk is out of the picture.
      scratch: { type: 'string' },
    },
  })
  const chosen = peers.filter(
    ({ name }) => positionals.length === 0 || name === 'umbra' || positionals.some((one) => name.startsWith(one)),
  )
  const missing = ['time', 'virtnbdbackup'].filter(
    (name) => name === 'time' || chosen.some((peer) => peer.packages.includes(name)),
  )
  const packages = [...new Set([...missing, ...chosen.flatMap((peer) => peer.packages)])]
  execFileSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...packages], { stdio: 'ignore' })
  await mkdir(values.directory, { recursive: true })
  const data = await makeData(values.directory, console.log)
  console.log(
    `disk ${data.sizeBytes / 1e6} MB, ${Math.round(data.allocatedBytes / 1e6)} MB allocated; ${cpus().length} x ${cpus()[0]?.model}`,
  )
  await using libvirtd = await privateLibvirtd('/run/umbra/bench')
  const scratch = join(values.scratch ?? values.directory, 'umbra-bench')
  const umbra = await installUmbra(values.directory)
  const place = { data, umbra, scratch, out: join(values.directory, 'out'), uri: libvirtd.uri }
  const results = new Map<string, Awaited<ReturnType<typeof round>>[]>()
  for (let number = 0; number < Number(values.rounds); number++) {
    for (const peer of chosen) {
      try {
        const one = await round(peer, place, number === 0)
        results.set(peer.name, [...(results.get(peer.name) ?? []), one])
      } catch (error) {
        console.error(`${peer.name}: ${(error as Error).message}`)
      }
    }
  }
  for (const directory of [scratch, place.out]) await rm(directory, { recursive: true, force: true })
  execFileSync('virsh', ['-c', libvirtd.uri, 'undefine', vm], { stdio: 'ignore' })
  report(results)
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main()
