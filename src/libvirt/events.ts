/**
 * libvirt's domain events as they come over the wire (remote_protocol.x, remote_domain_event_*_msg; their meaning in
 * the API reference under virDomainEventID). A VM is named by its UUID.
 */
import { eventNumbers } from './protocol.ts'
import { type XdrReader, XdrWriter } from './rpc-wire.ts'
import { formatUuid } from './uuid.ts'

const lifecycleNames = ['defined', 'undefined', 'started', 'suspended', 'resumed', 'stopped', 'shutdown'] as const
const blockJobStates = ['completed', 'failed', 'cancelled', 'ready'] as const

export interface LibvirtEvents {
  lifecycle: { uuid: string; event: (typeof lifecycleNames)[number] | 'other'; detail: number }
  /** `target` is the hypervisor's name of the disk. */
  blockJob: { uuid: string; target: string; state: (typeof blockJobStates)[number] | 'other' }
  agentLifecycle: { uuid: string; connected: boolean }
  ioError: { uuid: string; path: string; alias: string; reason: string }
}

export type EventKind = keyof LibvirtEvents

/** Arguments of the call that asks for events of all VMs. */
export const registration = (kind: EventKind): XdrWriter => new XdrWriter().i32(eventNumbers[kind].id).u32(0)

const readDomain = (reader: XdrReader): string => {
  reader.string()
  const uuid = formatUuid(reader.fixed(16))
  reader.i32()
  return uuid
}

const readers: { readonly [Kind in EventKind]: (reader: XdrReader, uuid: string) => LibvirtEvents[Kind] } = {
  lifecycle: (reader, uuid) => ({ uuid, event: lifecycleNames[reader.i32()] ?? 'other', detail: reader.i32() }),
  blockJob: (reader, uuid) => {
    const target = reader.string()
    reader.i32()
    return { uuid, target, state: blockJobStates[reader.i32()] ?? 'other' }
  },
  agentLifecycle: (reader, uuid) => ({ uuid, connected: reader.i32() === 1 }),
  ioError: (reader, uuid) => {
    const path = reader.string()
    const alias = reader.string()
    reader.i32()
    return { uuid, path, alias, reason: reader.string() }
  },
}

export function readEvent<Kind extends EventKind>(kind: Kind, reader: XdrReader): LibvirtEvents[Kind] {
  reader.i32() // the callback's number
  return readers[kind](reader, readDomain(reader))
}
