/**
 * The undo steps of the VM side, by name. The same table serves a session that ends, a watchdog, and `umbra recover`;
 * records come back from a journal on disk and are therefore read, not trusted (S2).
 */
import { rm } from 'node:fs/promises'
import { z } from 'zod'
import type { UndoHandlers, UndoRecord } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { releaseGuest } from './child-snapshot.ts'
import { thawGuest } from './guest-freeze.ts'
import { copySerial, type DiskImage, type Hypervisor } from './hypervisor.ts'
import { type TakeBack, takeBackRestore } from './restore.ts'
import { removeFile, takeBackSave } from './saved-state.ts'

const path = z.string().startsWith('/')
const vm = z.string().min(1)

const records = {
  thawGuest: z.object({ vm }),
  releaseGuest: z.object({ vm, set: z.string().regex(/^[0-9a-f]{8}$/) }),
  detachCopy: z.object({ vm, serial: z.string().regex(copySerial) }),
  returnVm: z.object({ vm, file: path, power: z.string() }),
  removeFile: z.object({ path }),
  removeFiles: z.object({ paths: z.array(path) }),
  mergeOverlay: z.object({
    vm,
    target: z.string(),
    overlay: path,
    base: z.custom<DiskImage>((value) => typeof value === 'object' && value !== null),
  }),
  takeBack: z.object({
    vm,
    places: z.array(z.object({ path, aside: path.nullable() })),
    former: z
      .object({
        configuration: z.string(),
        power: z.enum(['running', 'paused', 'saved', 'off']),
        persistent: z.boolean(),
      })
      .optional(),
  }),
}

export function vmUndoHandlers(hypervisor: Hypervisor, clock: Clock = systemClock): UndoHandlers {
  return {
    'thaw-guest': (record) => thawGuest(hypervisor, records.thawGuest.parse(record).vm),
    'release-guest': (record) => {
      const { vm: uuid, set } = records.releaseGuest.parse(record)
      return releaseGuest(hypervisor, uuid, set)
    },
    'detach-copy': (record) => {
      const { vm: uuid, serial } = records.detachCopy.parse(record)
      return hypervisor.detachCopy(uuid, serial)
    },
    'return-vm': (record) => takeBackSave(hypervisor, clock, records.returnVm.parse(record)),
    'merge-overlay': async (record: UndoRecord) => {
      const { vm: uuid, ...overlay } = records.mergeOverlay.parse(record)
      if ((await hypervisor.power(uuid)) === 'gone')
        throw new Error(`the VM is gone; its overlay ${overlay.overlay} was left as it is`)
      await hypervisor.mergeOverlay(uuid, overlay)
      await hypervisor.resumeAfterIoError(uuid)
    },
    'remove-file': (record) => removeFile(records.removeFile.parse(record).path),
    'remove-files': async (record) => {
      for (const one of records.removeFiles.parse(record).paths) await rm(one, { force: true })
    },
    'take-back-restore': (record) => takeBackRestore(hypervisor, records.takeBack.parse(record) as TakeBack),
  }
}
