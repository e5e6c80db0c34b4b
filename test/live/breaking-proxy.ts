/**
 * A TCP proxy in front of a server that breaks connections, when and where a test says so. Each break happens once.
 */

import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'

export type Break =
  /** When this many bytes went to the server. */
  | { readonly after: number; readonly of: 'requests' }
  /** When this many bytes went to the client. */
  | { readonly after: number; readonly of: 'answers' }
  /** The request arrives whole; of its answer nothing does. */
  | { readonly of: 'answer' }

export interface BreakingProxy extends AsyncDisposable {
  readonly endpoint: string
  /** What it broke so far. */
  readonly broken: number
  /** The next thing to break. */
  breakNext(next: Break): void
  /** In the next request that holds `good` (in one piece), `bad` of the same length stands instead. */
  spoilNext(good: Buffer, bad: Buffer): void
}

/** `endpoint` is http://host:port. Disposal ends all connections. */
export async function openBreakingProxy(endpoint: string): Promise<BreakingProxy> {
  const { hostname, port } = new URL(endpoint)
  const sockets = new Set<Socket>()
  let next: (Break & { seen: number }) | undefined
  let spoil: { readonly good: Buffer; readonly bad: Buffer } | undefined
  let broken = 0

  /** True when the connection is to be broken instead of handing on `bytes`. */
  function breaks(direction: 'requests' | 'answers', bytes: number): boolean {
    if (next === undefined) return false
    if (next.of === 'answer') {
      if (direction === 'requests') return false
    } else {
      if (next.of !== direction) return false
      next.seen += bytes
      if (next.seen < next.after) return false
    }
    next = undefined
    broken += 1
    return true
  }

  function spoils(chunk: Buffer): void {
    const at = spoil === undefined ? -1 : chunk.indexOf(spoil.good)
    if (spoil === undefined || at === -1) return
    spoil.bad.copy(chunk, at)
    spoil = undefined
    broken += 1
  }

  const server = createServer((client) => {
    const store = connect(Number(port), hostname)
    for (const socket of [client, store]) {
      sockets.add(socket)
      socket.on('error', () => socket.destroy()) // the other end notices
    }
    const join = (from: Socket, to: Socket, direction: 'requests' | 'answers') => {
      from.on('data', (chunk) => {
        if (direction === 'requests') spoils(chunk)
        if (breaks(direction, chunk.length)) {
          client.destroy()
          store.destroy()
        } else if (!to.write(chunk)) {
          from.pause()
          to.once('drain', () => from.resume())
        }
      })
      from.on('end', () => to.end())
      from.on('close', () => {
        sockets.delete(from)
        to.destroy()
      })
    }
    join(client, store, 'requests')
    join(store, client, 'answers')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  return {
    endpoint: `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`,
    get broken() {
      return broken
    },
    breakNext(what) {
      next = { ...what, seen: 0 }
    },
    spoilNext(good, bad) {
      spoil = { good, bad }
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}
