/**
 * The gate between a VM and the server of its disks: a qemu-storage-daemon that outlives both Umbra and that server, and
 * lets requests wait while the server is away (reconnect-delay of BlockdevOptionsNbd, "QEMU QMP Reference Manual"; "QEMU
 * Storage Daemon"). libvirt before 9.1 has no way to ask the VM's own QEMU for that, so that without a gate the guest would
 * see errors as soon as the server dies. Nothing is kept in the gate; it can be started anew at any time.
 */
import { chmod, chown, rm } from 'node:fs/promises'
import { endProcess, livingProcess } from '../base/pid-file.ts'
import { runCommand } from '../base/run-command.ts'
import { reconnectDelaySeconds } from './repository-overlay.ts'

export interface Gate {
  /** Where the VM connects. */
  readonly socketPath: string
  /** Where the server listens. */
  readonly serverSocketPath: string
  readonly pidFile: string
  readonly exportNames: readonly string[]
}

const startDeadlineMs = 30_000

/**
 * Started in the background; false when it is there already. The server must be listening. `owner` may connect, and nobody
 * else.
 */
export async function openGate(gate: Gate, owner: { uid: number; gid: number } | undefined): Promise<boolean> {
  if ((await livingProcess(gate.pidFile)) !== undefined) return false
  await rm(gate.socketPath, { force: true })
  // Private from the first moment, whatever umask the caller has: the shell only sets it, and hands over.
  const daemon = ['-c', 'umask 0177; exec "$@"', 'sh', 'qemu-storage-daemon', ...gateArguments(gate)]
  // Killed on the way, no gate is left that nobody knows of: without its reader the daemon ends at the end of its start.
  await runCommand('/bin/sh', daemon, { deadlineMs: startDeadlineMs, diesWithUs: true })
  await chmod(gate.socketPath, 0o600)
  if (owner !== undefined && process.getuid?.() === 0) await chown(gate.socketPath, owner.uid, owner.gid)
  return true
}

/** Idempotent. The VM must not need it any more. */
export async function closeGate({ pidFile, socketPath }: Gate): Promise<void> {
  await endProcess(pidFile)
  await rm(socketPath, { force: true })
}

export function gateArguments({ socketPath, serverSocketPath, pidFile, exportNames }: Gate): string[] {
  const json = (option: string, value: unknown) => [option, JSON.stringify(value)]
  const server = { type: 'unix', path: serverSocketPath }
  return [
    ...exportNames.flatMap((name, i) => {
      const node = { driver: 'nbd', 'node-name': `disk${i}`, server, export: name, 'read-only': true }
      return json('--blockdev', { ...node, 'reconnect-delay': reconnectDelaySeconds })
    }),
    ...json('--nbd-server', { addr: { type: 'unix', path: socketPath }, 'max-connections': 0 }),
    ...exportNames.flatMap((name, i) =>
      json('--export', { type: 'nbd', id: `export${i}`, 'node-name': `disk${i}`, name, writable: false }),
    ),
    ...['--pidfile', pidFile, '--daemonize'],
  ]
}
