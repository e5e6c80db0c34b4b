/**
 * Plan, then execute: what a restore of one component will do, as a value that `--dry-run` prints and the requester
 * carries out. The writer makes it (it knows what its files mean); the requester only moves bytes.
 */
import type { JsonObject } from '../base/cleanup.ts'
import type { ComponentRef } from './components.ts'

/** What the user may say about a restore. */
export interface RestoreRequest {
  /** Restore as a new thing of this name, beside the original. */
  readonly as?: string
  /** Put the files into this directory instead of the original place. */
  readonly to?: string
  /** Image format of all disks (raw, qcow2, vpc, vhdx) where `disks` does not say otherwise; as stored unless told. */
  readonly format?: string
  /** Place and format of single disks, by target; a path that ends with / is a directory. */
  readonly disks?: Readonly<Record<string, { readonly path?: string; readonly format?: string }>>
  /** Only these disks, into the thing that is still there; its configuration stays. */
  readonly only?: readonly string[]
  readonly networks: Readonly<Record<string, string>>
  /** A copy gets the MAC addresses of its original. */
  readonly keepMac?: boolean
  /** Names or UUIDs of things, and paths of files, that make way although they are not what was backed up. */
  readonly replace?: readonly string[]
  readonly start: boolean
}

/** What the recovery point has of a component. */
export interface StoredComponent {
  readonly component: ComponentRef
  readonly metadata: JsonObject
  /** Name and size in bytes of each stream (a disk, memory). */
  readonly streams: Readonly<Record<string, number>>
  /** Small files by name. */
  readonly documents: Readonly<Record<string, Uint8Array>>
}

/** As stat(2) tells them. */
export interface FileOwner {
  readonly uid: number
  readonly gid: number
  readonly mode: number
}

/** One file to write: to `staged` while everything old is still in place, then moved to `path`. */
export interface RestoreTarget {
  readonly source: { readonly stream: string; readonly sizeBytes: number } | { readonly document: string }
  readonly staged: string
  readonly path: string
  /** A file that may hold much of it already: only what differs need be written, to a clone of it. */
  readonly base?: string
  /** An image format, `file` for plain bytes, or `tree` for a directory whose files the stream holds. */
  readonly format: string
  /** Whose it was; without it the file is private to root. */
  readonly owner?: FileOwner
}

export interface ComponentRestorePlan {
  readonly component: ComponentRef
  readonly caption: string
  readonly targets: readonly RestoreTarget[]
  /** What will happen, one sentence each, in order. */
  readonly steps: readonly string[]
  readonly warnings: readonly string[]
  /** Why it can not be done; nothing is touched unless this is empty. */
  readonly obstacles: readonly string[]
}

/** Each component's plan by the planner of its writer; of a writer that is unknown here nothing can be restored. */
export function planBy(planners: Readonly<Record<string, RestorePlanner>>): RestorePlanner {
  return {
    planRestore: async (stored, request) => {
      const { component, metadata } = stored
      const planner = planners[component.writerId]
      if (planner !== undefined) return planner.planRestore(stored, request)
      const caption = String(metadata.name ?? component.name)
      const obstacles = [`it was backed up by a writer that is not known here: ${component.writerId}`]
      return { component, caption, targets: [], steps: [], warnings: [], obstacles }
    },
  }
}

/** A writer that can say beforehand what its restore will do. */
export interface RestorePlanner {
  planRestore(stored: StoredComponent, request: RestoreRequest): Promise<ComponentRestorePlan>
}
