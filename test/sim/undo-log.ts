/**
 * An undo journal in memory: what still stands in it is what a crash now would leave to be undone.
 */
import type { UndoLog, UndoRecord } from '../../src/base/cleanup.ts'

export function undoLog(): { readonly records: Map<number, UndoRecord>; readonly log: UndoLog } {
  const records = new Map<number, UndoRecord>()
  let last = 0
  const log: UndoLog = {
    async add(record, supersedes) {
      records.set(++last, record)
      if (supersedes !== undefined) records.delete(supersedes)
      return last
    },
    done: (id) => void records.delete(id),
  }
  return { records, log }
}
