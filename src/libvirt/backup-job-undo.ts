/**
 * The undo steps of backup jobs, by name. Records come back from a journal on disk and are therefore read, not trusted.
 */
import { z } from 'zod'
import type { UndoHandlers, UndoRecord } from '../base/cleanup.ts'
import { type BackupJobInPlace, type BackupJobs, trackingPointName } from '../vm/backup-job.ts'

const path = z.string().startsWith('/')
const vm = z.string().min(1)
const endJob = z.object({ vm, socket: path, scratch: z.array(path).max(1000) })
const removeStamp = z.object({ vm, point: z.string().regex(trackingPointName) })

/** `name`: how people call the VM. */
export const endJobRecord = (uuid: string, name: string, { socket, scratch }: BackupJobInPlace): UndoRecord => ({
  undo: 'end-backup-job',
  vm: uuid,
  name,
  socket,
  scratch: [...scratch],
})

export const removeStampRecord = (uuid: string, name: string, point: string): UndoRecord => ({
  undo: 'remove-stamp',
  vm: uuid,
  name,
  point,
})

export function backupJobUndoHandlers(hypervisor: BackupJobs): UndoHandlers {
  return {
    'end-backup-job': (record) => {
      const { vm: uuid, ...job } = endJob.parse(record)
      return hypervisor.endBackupJob(uuid, job)
    },
    'remove-stamp': (record) => {
      const { vm: uuid, point } = removeStamp.parse(record)
      return hypervisor.removeTrackingPoint(uuid, point)
    },
  }
}
