/**
 * Umbra's own NBD server: disks out of the repository, read-only, for QEMU, libnbd and the kernel's client.
 *
 * What it speaks of the protocol (doc/proto.md of the NBD project): the fixed newstyle negotiation with the options GO,
 * INFO, EXPORT_NAME, LIST, ABORT, STRUCTURED_REPLY, LIST_META_CONTEXT and SET_META_CONTEXT (base:allocation), all others
 * answered UNSUP; the commands READ (holes told as holes where structured replies were agreed upon), BLOCK_STATUS, FLUSH
 * and DISC; whatever would write is answered EPERM. A read has 32 MiB at most. Every export may be used over several
 * connections. There is neither TLS nor authentication: whoever may connect to the socket may read, so the socket is
 * private to its owner.
 *
 * A read that fails (a damaged chunk, a repository that is gone) is answered EIO and told by `onFailure`; the connection
 * lives on. Patience with a repository that is away is the source's: src/requester/patient-disks.ts.
 */
import { chmod, lstat, mkdtemp, rename, rm } from 'node:fs/promises'
import net from 'node:net'
import { dirname, join } from 'node:path'
import { withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import { invariant } from '../base/failure.ts'
import { makeDirectory } from '../base/make-directory.ts'
import { failure } from '../errors.ts'
import type { BlockSource } from './block-device.ts'
import { serveClient } from './nbd-server-connection.ts'
import { openMemoryBudget } from './nbd-server-memory.ts'
import { type ServedFailure, ServedSource } from './nbd-server-source.ts'
import { maximumStringBytes } from './nbd-wire.ts'

export type { ServedFailure } from './nbd-server-source.ts'

export interface ServedDisk {
  /** The name of the export. */
  readonly name: string
  /** Stays the caller's, who disposes it after the server. */
  readonly source: BlockSource
}

export interface DiskServerOptions {
  /** At most 107 bytes, its directory 97. The directory is made, private, when it is missing. A socket nobody listens on is replaced. */
  readonly socketPath: string
  /** Of the socket; 0600 unless told. */
  readonly mode?: number
  /** A read failed, and its client was told EIO. */
  readonly onFailure?: (failure: ServedFailure) => void
}

/** Disposal stops listening, ends the connections, waits (10 s at most) until no source is being read, and removes the socket. */
export interface DiskServer extends AsyncDisposable {
  readonly socketPath: string
  /** How QEMU and libnbd name the export. */
  uri(name: string): string
  /** Clients connected now. */
  readonly connections: number
}

const maximumSocketPathBytes = 107
const connectionsMost = 64
/** Held by reads under way, of all clients together. */
const memoryBytes = 64 * 1024 * 1024
const stopPatienceMs = 10_000

/** Listens when it resolves. NBD_LISTEN_FAILED. */
export async function serveDisks(disks: readonly ServedDisk[], options: DiskServerOptions): Promise<DiskServer> {
  const { socketPath, mode = 0o600, onFailure = () => undefined } = options
  const names = disks.map(({ name }) => name)
  invariant(new Set(names).size === names.length, 'every disk is served under a name of its own')
  invariant(
    names.every((name) => Buffer.byteLength(name) <= maximumStringBytes),
    'an NBD name is at most 4096 bytes long',
  )
  const sources = new Map(disks.map(({ name, source }) => [name, new ServedSource(name, source, onFailure)]))
  const context = { disks: sources, memory: openMemoryBudget(memoryBytes) }
  const end = new AbortController()
  const clients = new Set<Promise<void>>()
  const server = net.createServer((socket) => {
    const client = serveClient(socket, context, end.signal)
      .catch(() => undefined) // one client's error is none of the others'
      .finally(() => clients.delete(client))
    clients.add(client)
  })
  server.maxConnections = connectionsMost
  const removeSocket = await listenPrivately(server, socketPath, mode)
  let disposal: Promise<void> | undefined
  const stop = async () => {
    const closed = new Promise((resolve) => server.close(resolve))
    end.abort()
    const ended = Promise.all([...clients, closed])
    const limit = { clock: systemClock, limitMs: stopPatienceMs, what: 'ending the clients' }
    await withDeadline(ended, limit).catch(() => undefined) // a source that hangs is disposed by its owner
    await removeSocket()
  }
  return {
    socketPath,
    uri: (name) => `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURIComponent(socketPath)}`,
    get connections() {
      return clients.size
    },
    [Symbol.asyncDispose]: () => {
      disposal ??= stop()
      return disposal
    },
  }
}

/**
 * Listens in a directory of its own first, so that nobody can connect before the socket has its mode; then it takes its
 * place by a rename. Answers how to remove it again, which leaves the socket of another server alone.
 */
async function listenPrivately(server: net.Server, socketPath: string, mode: number): Promise<() => Promise<void>> {
  const refused = (reason: string, cause?: unknown) =>
    failure('NBD_LISTEN_FAILED', { address: socketPath, reason }, cause)
  if (Buffer.byteLength(socketPath) > maximumSocketPathBytes)
    throw refused(`the path of the socket is longer than ${maximumSocketPathBytes} bytes`)
  try {
    await makeDirectory(dirname(socketPath), 0o700)
  } catch (error) {
    throw refused(error instanceof Error ? error.message : String(error), error)
  }
  const taken = await takenBy(socketPath)
  if (taken !== undefined) throw refused(taken)
  let aside: string | undefined
  try {
    aside = await mkdtemp(`${dirname(socketPath)}/.`)
    const asidePath = join(aside, 's')
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(asidePath, () => {
        server.off('error', reject)
        server.on('error', () => undefined) // a client that could not be accepted
        resolve()
      })
    })
    await chmod(asidePath, mode)
    const { ino } = await lstat(asidePath)
    await rename(asidePath, socketPath)
    return async () => {
      const there = await lstat(socketPath).catch(() => undefined)
      if (there?.ino === ino) await rm(socketPath, { force: true })
    }
  } catch (error) {
    server.close()
    throw refused(error instanceof Error ? error.message : String(error), error)
  } finally {
    if (aside !== undefined) await rm(aside, { recursive: true, force: true })
  }
}

/** Why the path can not be ours; undefined when nothing is there, or the socket of a server that has died. */
async function takenBy(socketPath: string): Promise<string | undefined> {
  const there = await lstat(socketPath).catch(() => undefined)
  if (there === undefined) return undefined
  if (!there.isSocket()) return 'there is something else of that name'
  const answers = await new Promise<boolean>((resolve) => {
    const socket = net.connect(socketPath, () => resolve(true)).on('error', () => resolve(false))
    socket.on('connect', () => socket.destroy())
  })
  return answers ? 'another server listens there' : undefined
}
