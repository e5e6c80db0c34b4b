/**
 * Disks of a recovery point on a socket of ours, for the commands that let others read them. Their reads wait a minute for a
 * repository that can not be reached, and whoever sits at the command is told.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { describeError } from '../base/failure.ts'
import { socketDirectory } from '../compose.ts'
import { type DiskServer, serveDisks } from '../disk/nbd-server.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import type { ExportableDisk } from '../requester/export-contents.ts'
import { openDisksIn, openDisksOf, PatientDisks } from '../requester/patient-disks.ts'
import type { CommandContext } from './command.ts'

/** How long a read waits for a repository that can not be reached. */
const patienceMs = 60_000

export interface ServedPoint {
  /** Stays the caller's. */
  readonly point: RecoveryPoint
  readonly disks: readonly { readonly name: string; readonly disk: ExportableDisk }[]
  /** What the socket's name begins with. */
  readonly socketPrefix: string
  /** Opens the repository once more, without asking anybody. */
  readonly openAgain: () => Promise<Repository>
}

/** Disposal ends the waiting, the server and the disks. */
export async function servePoint(
  { point, disks, socketPrefix, openAgain }: ServedPoint,
  { settings, signal, screen }: CommandContext,
): Promise<DiskServer> {
  const wanted = disks.map(({ name, disk: { stream, sizeBytes } }) => ({ name, stream, sizeBytes }))
  const end = new AbortController()
  await using opened = new AsyncDisposableStack()
  const patient = opened.use(
    new PatientDisks(await openDisksOf(point, wanted), {
      open: () => openDisksIn(openAgain(), point.id, wanted),
      signal: AbortSignal.any([signal, end.signal]),
      patienceMs,
      onAway: (error) => screen.note(`waiting for the repository: ${describeError(error)}`),
    }),
  )
  const sources = disks.map(({ name }) => ({ name, source: patient.source(name) }))
  const server = opened.use(
    await serveDisks(sources, {
      socketPath: join(await socketDirectory(settings), `${socketPrefix}${randomBytes(4).toString('hex')}.sock`),
      onFailure: ({ name, offset, error }) =>
        screen.note(`${name} at offset ${offset}: can not be read: ${describeError(error)}`),
    }),
  )
  opened.defer(() => end.abort())
  const held = opened.move()
  return {
    socketPath: server.socketPath,
    uri: server.uri,
    get connections() {
      return server.connections
    },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}
