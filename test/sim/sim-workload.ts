/**
 * What runs inside a simulated guest: an application that writes record k to disk A, syncs, writes it to disk B,
 * syncs (two steps, so that an instant can fall between), and recovers from a power cut like a database.
 */
import { NoSpaceError } from './host-files.ts'
import { type ConfiguredDisk, readConfiguration } from './sim-configuration.ts'
import type { SimDisk } from './sim-disk.ts'
import { isCopy } from './sim-hot-add.ts'
import { encodeRecord, type LogArea, logArea, readLog, recordBytes } from './sim-records.ts'
import type { LiveVm } from './sim-vm.ts'
import type { SimWorld } from './sim-world.ts'

interface Log {
  readonly target: string
  readonly disk: SimDisk
  readonly area: LogArea
}

export class SimWorkload {
  readonly #world: SimWorld
  readonly #uuid: string

  constructor(world: SimWorld, uuid: string) {
    this.#world = world
    this.#uuid = uuid
  }

  /** The disks a file system lies on, in the order of the configuration. */
  get disks(): readonly ConfiguredDisk[] {
    const xml = this.#live?.configuration ?? this.#world.vms.get(this.#uuid)?.configuration
    if (xml === undefined) return []
    return readConfiguration(xml).disks.filter(
      (disk) => disk.device === 'disk' && !disk.readOnly && disk.image !== undefined && !isCopy(disk),
    )
  }

  /** After a cold boot: finds where the logs end, and completes the record a power cut left on A only. */
  boot(): void {
    const live = this.#live
    const logs = this.#logs()
    if (live === undefined || logs === undefined) return
    const [a, b] = logs.map(({ disk, area }) => {
      const bytes = new Uint8Array(area.length)
      disk.read(area.offset, bytes)
      return readLog(bytes)
    })
    if (a === undefined || b === undefined) return
    live.memory.damaged = a.torn + b.torn > 0 || a.last - b.last < 0 || a.last - b.last > 1
    live.memory.step = a.last + b.last
    if (!live.memory.damaged && a.last > b.last) this.step()
  }

  /** One step of the application; a frozen file system makes it wait, and so does its own freeze hook. */
  step(): void {
    const live = this.#running
    const logs = this.#logs()
    if (live === undefined || logs === undefined || live.memory.damaged) return
    const { memory } = live
    const log = memory.step % 2 === 0 ? logs[0] : logs[1]
    if (memory.frozen.includes(log.target) || memory.heldFor !== undefined) memory.blockedSteps++
    else if (this.#append(log, Math.floor(memory.step / 2) + 1, 'W')) memory.step++
  }

  /** The application's own hook: the record under way is completed, and a Q record stands at the end of both logs. */
  quiesce(): void {
    const live = this.#running
    const logs = this.#logs()
    if (live === undefined || logs === undefined || live.memory.damaged) return
    if (live.memory.step % 2 === 1) this.step()
    const sequence = live.memory.step / 2 + 1
    if (!Number.isInteger(sequence)) return
    for (const log of logs) if (this.#append(log, sequence, 'Q')) live.memory.step++
  }

  /** Any bytes at any place, as a process in the guest would write them, synced. */
  write(target: string, offset: number, data: Uint8Array): void {
    const live = this.#running
    if (live === undefined) return
    if (live.memory.frozen.includes(target)) live.memory.blockedWrites.push({ target, offset, data })
    else {
      const image = this.disks.find((disk) => disk.target === target)?.image
      if (image !== undefined) this.#store(this.#world.files.disk(image), offset, data)
    }
  }

  /** What was held back while frozen happens now. */
  unblock(): void {
    const live = this.#running
    if (live === undefined) return
    const { blockedSteps, blockedWrites } = live.memory
    live.memory.blockedSteps = 0
    live.memory.blockedWrites = []
    for (let step = 0; step < blockedSteps; step++) this.step()
    for (const { target, offset, data } of blockedWrites) this.write(target, offset, data)
  }

  get #live(): LiveVm | undefined {
    return this.#world.vms.get(this.#uuid)?.live
  }

  get #running(): LiveVm | undefined {
    return this.#live?.power === 'running' ? this.#live : undefined
  }

  /** Where the application writes; nowhere when it is off, has no disk, or somebody took the files away. */
  #logs(): readonly [Log, Log] | undefined {
    if (this.#running === undefined) return undefined
    const [first, second = first] = this.disks
    const a = this.#log('A', first)
    const b = this.#log('B', second)
    return a === undefined || b === undefined ? undefined : [a, b]
  }

  #log(log: 'A' | 'B', on: ConfiguredDisk | undefined): Log | undefined {
    const disk = on?.image === undefined ? undefined : this.#world.files.findDisk(on.image)
    if (on === undefined || disk === undefined) return undefined
    return { target: on.target, disk, area: logArea(log, disk.sizeBytes) }
  }

  /** False when nothing was written: the log is full, or the host is. */
  #append(log: Log, sequence: number, type: 'W' | 'Q'): boolean {
    const at = (sequence - 1) * recordBytes
    if (at + recordBytes > log.area.length) return false
    return this.#store(log.disk, log.area.offset + at, encodeRecord(sequence, type))
  }

  /** As QEMU does by default, a full host pauses the VM; the write is tried again after `resume`. */
  #store(disk: SimDisk, offset: number, data: Uint8Array): boolean {
    const live = this.#running
    if (live === undefined) return false
    try {
      disk.write(offset, data)
      return true
    } catch (error) {
      if (!(error instanceof NoSpaceError)) throw error
      live.power = 'paused'
      live.ioError = true
      live.memory.stoppedAtMs = this.#world.clock.now()
      return false
    }
  }
}
