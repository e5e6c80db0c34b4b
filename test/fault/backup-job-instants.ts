/**
 * What every disk of a backup job held at the instant, taken from the simulated disks themselves at the moment the job
 * begins, and a socket such as QEMU makes then. Nothing of the product, nor of how the simulator keeps copies, is believed.
 */
import { trackingPointName } from '../../src/vm/backup-job.ts'
import type { SimBackupJob } from '../sim/sim-backup-job.ts'
import { nameOf } from '../sim/sim-vm.ts'
import type { Host } from './harness.ts'

export class Instants {
  readonly #host: Host
  readonly #contents = new Map<string, Uint8Array>()
  readonly #watched = new WeakSet<object>()

  constructor(host: Host) {
    this.#host = host
  }

  /** Watches the QEMU processes that there are now; call it again after one has started. */
  watch(): void {
    const { world } = this.#host
    for (const vm of world.vms.values()) {
      const { live } = vm
      if (live === undefined || this.#watched.has(live)) continue
      this.#watched.add(live)
      let job: SimBackupJob | undefined
      Object.defineProperty(live, 'backupJob', {
        get: () => job,
        set: (next: SimBackupJob | undefined) => {
          job = next
          if (next === undefined) return
          world.files.put(next.plan.socket, new Uint8Array(1))
          const [, , stamp] = trackingPointName.exec(next.plan.point ?? '') ?? []
          if (stamp === undefined) return
          for (const { target } of next.plan.disks)
            this.#contents.set(keyOf(stamp, vm.uuid, target), world.diskBytes(nameOf(vm), target))
        },
      })
    }
  }

  /** What a VM that did not run held at an instant that was none of a job. */
  remember(point: string, uuid: string, target: string, content: Uint8Array): void {
    this.#contents.set(keyOf(point, uuid, target), content)
  }

  /** Undefined when that recovery point's instant was none of a job. */
  content(point: string, uuid: string, target: string): Uint8Array | undefined {
    return this.#contents.get(keyOf(point, uuid, target))
  }
}

const keyOf = (...parts: readonly string[]): string => parts.join(' ')
