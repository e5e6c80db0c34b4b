/**
 * Disks for the tests of this folder: images with real LVM metadata, made by lvm2 on loop devices without device-mapper
 * (`--driverloaded n`, as sample-guest/build-lvm does), and a small writer of exception stores. Where volumes lie is asked
 * of lvm2, never of the code under test.
 */
import { execFileSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import type { RevertDevice, RevertDisk } from '../../src/volumes/disk-stretch.ts'

export const MiB = 1024 * 1024

const found = (tool: string) =>
  ['/usr/sbin', '/sbin', '/usr/bin', '/bin'].some((folder) => existsSync(join(folder, tool)))
export const noLvm =
  process.getuid?.() !== 0 || !existsSync('/dev/loop-control') || !found('lvm') || !found('losetup')
    ? 'needs root, loop devices and lvm2'
    : false
export const noBtrfs = found('mkfs.btrfs') && found('btrfstune') ? false : 'needs btrfs-progs'

export const noGdisk = found('sgdisk') ? false : 'needs gdisk'

export function run(command: string, args: readonly string[], input = ''): string {
  const env = { ...process.env, LVM_SUPPRESS_FD_WARNINGS: '1', LC_ALL: 'C' }
  return execFileSync(command, args, { input, env, encoding: 'utf8', timeout: 30_000, stdio: 'pipe' })
}

/** A device over bytes in memory or a file: every access is noted, one outside of it is an error of the test. */
export class TestDevice implements RevertDevice {
  readonly sizeBytes: number
  readonly writes: { offset: number; length: number }[] = []
  flushes = 0
  mostInFlight = 0
  /** Of all devices' operations, in order; given by tests that look at it. */
  log: string[] = []
  /** Called before each write; may throw. */
  beforeWrite: () => void = () => undefined
  readonly #read: (offset: number, target: Uint8Array) => void
  readonly #write: (offset: number, data: Uint8Array) => void
  #inFlight = 0

  constructor(
    sizeBytes: number,
    read: (offset: number, target: Uint8Array) => void,
    write: (offset: number, data: Uint8Array) => void,
  ) {
    this.sizeBytes = sizeBytes
    this.#read = read
    this.#write = write
  }

  async #bounded(offset: number, length: number, access: () => void): Promise<void> {
    if (!(offset >= 0 && offset + length <= this.sizeBytes)) throw new Error(`outside of the disk: ${offset}+${length}`)
    this.#inFlight++
    this.mostInFlight = Math.max(this.mostInFlight, this.#inFlight)
    await setImmediate()
    this.#inFlight--
    access()
  }

  read(offset: number, target: Uint8Array): Promise<void> {
    return this.#bounded(offset, target.length, () => this.#read(offset, target))
  }

  write(offset: number, data: Uint8Array): Promise<void> {
    return this.#bounded(offset, data.length, () => {
      this.beforeWrite()
      this.writes.push({ offset, length: data.length })
      this.log.push(`write ${data.length}`)
      this.#write(offset, data)
    })
  }

  async flush(): Promise<void> {
    this.flushes++
    this.log.push('flush')
  }

  async *extents(offset: number, length: number) {
    yield { offset, length, data: true }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.flush()
  }
}

export function memoryDevice(bytes: Buffer): TestDevice {
  return new TestDevice(
    bytes.length,
    (offset, target) => target.set(bytes.subarray(offset, offset + target.length)),
    (offset, data) => bytes.set(data, offset),
  )
}

/** A folder with disk images; the files stay open until `end`. */
export class Bench {
  readonly folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'umbra-volumes-'))
  readonly #files = new Map<string, number>()
  readonly #loops: string[] = []

  image(name: string, sizeBytes: number): string {
    const path = join(this.folder, name)
    const file = openSync(path, 'w+')
    this.#files.set(path, file)
    truncateSync(path, sizeBytes)
    return path
  }

  fd(path: string): number {
    return this.#files.get(path) as number
  }

  contents(path: string): Buffer {
    const bytes = Buffer.alloc(fstatSync(this.fd(path)).size)
    readSync(this.fd(path), bytes, 0, bytes.length, 0)
    return bytes
  }

  device(path: string, sizeBytes: number): TestDevice {
    return new TestDevice(
      sizeBytes,
      (offset, target) => void readSync(this.fd(path), target, 0, target.length, offset),
      (offset, data) => void writeSync(this.fd(path), data, 0, data.length, offset),
    )
  }

  /** Loop devices only while something is done with them: their cache is not the file's. */
  withLoops<T>(parts: readonly Part[], work: (loops: readonly string[]) => T): T {
    try {
      const loops = parts.map(({ path, offset, sizeBytes }) => {
        const range = ['-o', String(offset), '--sizelimit', String(sizeBytes)]
        const loop = run('losetup', [...range, '-f', '--show', path]).trim()
        this.#loops.push(loop)
        return loop
      })
      return work(loops)
    } finally {
      for (const loop of this.#loops.splice(0)) run('losetup', ['-d', loop])
    }
  }

  end(): void {
    for (const file of this.#files.values()) closeSync(file)
    rmSync(this.folder, { recursive: true, force: true })
  }
}

export interface Part {
  readonly path: string
  readonly offset: number
  readonly sizeBytes: number
}

interface Unit {
  readonly part: Part
  readonly offset: number
  readonly length: number
}

/** Physical volumes with groups on them, and lvm2 to ask and to change them. */
export class LvmBench {
  readonly bench = new Bench()
  readonly parts: readonly Part[]
  readonly sizes: readonly number[]
  readonly #layouts = new Map<string, Unit[]>()

  /** Each disk has one physical volume: on the whole of it, or from `offset` on. */
  constructor(disks: readonly { sizeBytes: number; offset?: number; tailBytes?: number }[]) {
    this.sizes = disks.map(({ sizeBytes }) => sizeBytes)
    this.parts = disks.map(({ sizeBytes, offset = 0, tailBytes = 0 }, index) => {
      const path = this.bench.image(`disk${index}`, sizeBytes)
      return { path, offset, sizeBytes: sizeBytes - offset - tailBytes }
    })
  }

  devices(): { disks: RevertDisk[]; devices: TestDevice[] } {
    const devices = this.parts.map(({ path }, index) => this.bench.device(path, this.sizes[index] ?? 0))
    return { devices, disks: devices.map((device, index) => ({ name: `vd${index}`, device })) }
  }

  /** Runs lvm2's commands, one a line; `$0`, `$1`… are the physical volumes. */
  lvm(commands: string): string {
    return this.bench.withLoops(this.parts, (loops) => {
      const filter = [...loops.map((loop) => `"a|^${loop}$|"`), '"r|.*|"'].join(',')
      const config = `devices { use_devicesfile=0 filter=[${filter}] external_device_info_source="none" hints="none" }
 activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }
 global { use_lvmpolld=0 event_activation=0 locking_dir="${this.bench.folder}/locks" }`
      const lines = commands.split('\n').map((line) => line.trim())
      return lines
        .filter((line) => line !== '')
        .map((line) => {
          const words = line.split(/ +/).map((word) => word.replace(/^\$(\d)/, (_, at) => loops[at] ?? ''))
          const text = run('lvm', [...words, '--driverloaded', 'n', '--config', config])
          return loops.reduce((now, loop, index) => now.replaceAll(loop, `$${index}`), text)
        })
        .join('')
    })
  }

  /** Where each stripe unit of the volume lies: disk and offset, in order. Asked once for each volume. */
  layout(volume: string): Unit[] {
    const known = this.#layouts.get(volume) ?? this.#askLayout(volume)
    this.#layouts.set(volume, known)
    return known
  }

  #askLayout(volume: string): Unit[] {
    const [group = ''] = volume.split('/')
    const extent = Number(this.lvm(`vgs --noheadings --units b --nosuffix -o vg_extent_size ${group}`))
    const starts = new Map(
      this.lvm('pvs --noheadings --units b --nosuffix -o pv_name,pe_start')
        .trim()
        .split('\n')
        .map((line) => line.trim().split(/ +/) as [string, string]),
    )
    const columns = 'seg_start_pe,stripe_size,seg_pe_ranges'
    const rows = this.lvm(
      `lvs --segments --noheadings --units b --nosuffix --separator | -O seg_start_pe -o ${columns} ${volume}`,
    )
    return rows
      .trim()
      .split('\n')
      .flatMap((row) => {
        const [, stripe = '', ranges = ''] = row.trim().split('|')
        const stripes = ranges.split(' ').map((range) => {
          const [, pv = '', first = '', last = ''] = /^(\S+):(\d+)-(\d+)$/.exec(range) ?? []
          const part = this.parts[Number(pv.slice(1))] as Part
          return { part, at: Number(starts.get(pv)) + Number(first) * extent, size: (+last - +first + 1) * extent }
        })
        const size = stripes[0]?.size ?? 0
        const unit = stripes.length === 1 ? size : Number(stripe)
        const turns = Array.from({ length: size / unit }, (_, turn) => turn)
        return turns.flatMap((turn) =>
          stripes.map(({ part, at }) => ({ part, offset: at + turn * unit, length: unit })),
        )
      })
  }

  readVolume(volume: string): Buffer {
    return Buffer.concat(
      this.layout(volume).map(({ part, offset, length }) => {
        const bytes = Buffer.alloc(length)
        readSync(this.bench.fd(part.path), bytes, 0, length, part.offset + offset)
        return bytes
      }),
    )
  }

  writeVolume(volume: string, bytes: Buffer): void {
    let done = 0
    for (const { part, offset, length } of this.layout(volume)) {
      writeSync(this.bench.fd(part.path), bytes, done, length, part.offset + offset)
      done += length
    }
  }

  end(): void {
    this.bench.end()
  }
}

/** The bytes of a store that holds those chunks of `before`, in that order, as the kernel writes it. */
export function exceptionStore(sizeBytes: number, chunkBytes: number, before: Buffer, olds: readonly number[]): Buffer {
  const store = Buffer.alloc(sizeBytes)
  for (const [at, value] of [0x70416e53, 1, 1, chunkBytes / 512].entries()) store.writeUInt32LE(value, at * 4)
  const perArea = chunkBytes / 16
  for (const [index, old] of olds.entries()) {
    const area = Math.floor(index / perArea)
    const areaChunk = 1 + area * (perArea + 1)
    const fresh = areaChunk + 1 + (index % perArea)
    const pair = areaChunk * chunkBytes + (index % perArea) * 16
    store.writeBigUInt64LE(BigInt(old), pair)
    store.writeBigUInt64LE(BigInt(fresh), pair + 8)
    before.copy(store, fresh * chunkBytes, old * chunkBytes, (old + 1) * chunkBytes)
  }
  return store
}

/** The same numbers for the same seed. */
export function randomNumbers(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0
    let mixed = Math.imul(state ^ (state >>> 12), 0x297a2d39)
    mixed ^= mixed >>> 15
    return (mixed >>> 0) % below
  }
}
