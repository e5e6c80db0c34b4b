/**
 * The undo steps of the VM side, by name. The same table serves a session that ends, a watchdog, and `umbra recover`;
 * records come back from a journal on disk and are therefore read, not trusted (S2).
 */
import { rm } from 'node:fs/promises'
import { z } from 'zod'
import type { UndoHandlers, UndoRecord } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { removeCheckVm } from './boot-check.ts'
import { checkName } from './check-plan.ts'
import { releaseGuest } from './child-snapshot.ts'
import { type Cluster, heldAttributes, noCluster } from './cluster.ts'
import { releaseResource } from './cluster-hold.ts'
import { takeBackClusterRestore } from './cluster-restore.ts'
import { thawGuest } from './guest-freeze.ts'
import { copySerial, type DiskImage, type Hypervisor } from './hypervisor.ts'
import { type TakeBack, takeBackRestore } from './restore.ts'
import { removeFile, takeBackSave } from './saved-state.ts'

const path = z.string().startsWith('/')
const vm = z.string().min(1)
const resource = z.string().regex(/^[^\s-]\S*$/)
const places = z.array(z.object({ path, aside: path.nullable(), inode: z.string().optional(), to: path.optional() }))

const records = {
  thawGuest: z.object({ vm }),
  releaseGuest: z.object({ vm, set: z.string().regex(/^[0-9a-f]{8}$/) }),
  detachCopy: z.object({ vm, serial: z.string().regex(copySerial) }),
  returnVm: z.object({ vm, file: path, power: z.string(), resource: resource.optional() }),
  manageResource: z.object({
    resource,
    attribute: z.enum(heldAttributes),
    former: z.string().nullable(),
    set: z.string(),
    memory: path.optional(),
  }),
  takeBackCluster: z.object({ resource, places }),
  removeFile: z.object({ path }),
  removeFiles: z.object({ paths: z.array(path) }),
  mergeOverlay: z.object({
    vm,
    target: z.string(),
    overlay: path,
    base: z.custom<DiskImage>((value) => typeof value === 'object' && value !== null),
  }),
  removeCheckVm: z.object({ vm: z.uuid(), name: z.string().regex(checkName), directories: z.array(path) }),
  removeCheckNetwork: z.object({ network: z.string().regex(checkName) }),
  removeCheckDirectory: z.object({ path: path.regex(/\/checks\/[0-9a-f]{8}$/) }),
  takeBack: z.object({
    vm,
    places,
    former: z
      .object({
        uuid: vm.optional(),
        configuration: z.string(),
        power: z.enum(['running', 'paused', 'saved', 'off']),
        persistent: z.boolean(),
      })
      .optional(),
  }),
}

/** Those that can not wait for others: a guest stands still until they are done. */
export const vmThawSteps: readonly string[] = ['thaw-guest']

export function vmUndoHandlers(
  hypervisor: Hypervisor,
  clock: Clock = systemClock,
  cluster: Cluster = noCluster,
): UndoHandlers {
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
    'return-vm': (record) => takeBackSave(hypervisor, clock, records.returnVm.parse(record), cluster),
    'manage-resource': (record) => releaseResource(cluster, records.manageResource.parse(record)),
    'take-back-cluster-restore': (record) => takeBackClusterRestore(cluster, records.takeBackCluster.parse(record)),
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
    'remove-check-vm': (record) => removeCheckVm(hypervisor, records.removeCheckVm.parse(record)),
    'remove-check-network': (record) =>
      hypervisor.removeIsolatedNetwork(records.removeCheckNetwork.parse(record).network),
    'remove-check-directory': (record) =>
      rm(records.removeCheckDirectory.parse(record).path, { recursive: true, force: true }),
    'take-back-restore': (record) => takeBackRestore(hypervisor, records.takeBack.parse(record) as TakeBack),
  }
}
