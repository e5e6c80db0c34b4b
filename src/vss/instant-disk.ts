/**
 * A disk of an instant restore as both sides speak of it: the requester, who keeps the record, and the writer's side, which
 * pulls it in.
 */

export interface RunningDisk {
  readonly target: string
  /** Path of the file above the served disk: what is written and pulled lands in it. */
  readonly overlay: string
  readonly sizeBytes: number
}

export interface PullOptions {
  readonly signal: AbortSignal
  readonly onProgress: (doneBytes: number, totalBytes: number) => void
}
