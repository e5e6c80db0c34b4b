/**
 * Locks of this host that a crash can not leave behind: a name in Linux's abstract socket namespace, held by listening on
 * it and released by the kernel when the process ends, however it ends. Source: unix(7), "Abstract sockets".
 */
import { createHash } from 'node:crypto'
import { createServer } from 'node:net'

export type TryLock = (scope: string, name: string) => Promise<AsyncDisposable | undefined>

/** Takes the lock, or answers undefined at once when somebody holds it. Disposal releases it. */
export function tryLock(scope: string, name: string): Promise<AsyncDisposable | undefined> {
  // A name may be any length and any bytes; a socket address is short.
  const address = `\0umbra-${createHash('sha256').update(`${scope}\n${name}`).digest('hex').slice(0, 40)}`
  const server = createServer((connection) => connection.destroy())
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' ? resolve(undefined) : reject(error),
    )
    server.listen({ path: address, exclusive: true }, () => {
      server.unref()
      resolve({ [Symbol.asyncDispose]: () => new Promise<void>((closed) => server.close(() => closed())) })
    })
  })
}
