/**
 * Which socket a libvirt address means (libvirt docs, "Connection URIs" and "Remote support"). Only local sockets of
 * the QEMU driver: the system's daemon, a private one by its path, or the session daemon of the user.
 */
import { failure } from '../errors.ts'

export interface LibvirtAddress {
  /** What the daemon itself is asked to open. */
  readonly driverUri: 'qemu:///system' | 'qemu:///session'
  /** Sockets to try, in this order. */
  readonly sockets: readonly string[]
}

export const privateSocket = '/run/umbra/libvirtd/run/libvirt-sock'
export const systemUri = 'qemu:///system'
export const privateUri = `qemu+unix:///system?socket=${privateSocket}`

const systemSockets = [
  '/run/libvirt/libvirt-sock',
  '/var/run/libvirt/libvirt-sock',
  '/run/libvirt/virtqemud-sock',
  '/var/run/libvirt/virtqemud-sock',
]

export function parseLibvirtUri(uri: string, environment: NodeJS.ProcessEnv = process.env): LibvirtAddress {
  const url = URL.canParse(uri) ? new URL(uri) : undefined
  const unsupported = () => failure('HYPERVISOR_URI_UNSUPPORTED', { uri })
  if (url === undefined || url.host !== '' || (url.protocol !== 'qemu:' && url.protocol !== 'qemu+unix:')) {
    throw unsupported()
  }
  if ([...url.searchParams.keys()].some((key) => key !== 'socket')) throw unsupported()
  const socket = url.searchParams.get('socket')
  if (socket !== null && (url.protocol !== 'qemu+unix:' || !socket.startsWith('/'))) throw unsupported()
  if (url.pathname === '/system') {
    return { driverUri: 'qemu:///system', sockets: socket === null ? systemSockets : [socket] }
  }
  if (url.pathname !== '/session') throw unsupported()
  const runtime = environment.XDG_RUNTIME_DIR
  if (socket === null && runtime === undefined) {
    throw failure('HYPERVISOR_UNREACHABLE', { uri, reason: 'XDG_RUNTIME_DIR is not set' })
  }
  const own = [`${runtime}/libvirt/libvirt-sock`, `${runtime}/libvirt/virtqemud-sock`]
  return { driverUri: 'qemu:///session', sockets: socket === null ? own : [socket] }
}
