/**
 * Translates libvirt's virError (remote_protocol.x, struct remote_error; libvirt docs "virterror") into our failures.
 * libvirt's number always stays in the context as `libvirtCode`, so that a caller can decide by number, not by text.
 */
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { libvirtCodes } from './protocol.ts'
import type { XdrReader } from './rpc-wire.ts'

export interface VirError {
  readonly code: number
  readonly message: string
}

export function readVirError(reader: XdrReader): VirError {
  const code = reader.i32()
  reader.i32() // the part of libvirt it comes from
  return { code, message: (reader.optionalString() ?? 'no reason given').trim() }
}

const busyCodes: readonly number[] = [
  libvirtCodes.operationTimeout,
  libvirtCodes.resourceBusy,
  libvirtCodes.blockCopyActive,
]
const silentGuestCodes: readonly number[] = [
  libvirtCodes.agentUnresponsive,
  libvirtCodes.agentUnsynced,
  libvirtCodes.agentCommandTimeout,
]

/** `vm` is how the caller calls the VM; undefined for calls that are not about one. */
export function failureOf({ code, message }: VirError, call: string, vm: string | undefined): Failure {
  const context = { call, reason: message, libvirtCode: code, ...(vm === undefined ? {} : { vm }) }
  if (code === libvirtCodes.noDomain)
    return failure('VM_NOT_FOUND', { known: 'others', ...context, vm: vm ?? 'of that name' })
  if (vm === undefined) return failure('HYPERVISOR_REFUSED', context)
  if (silentGuestCodes.includes(code)) return failure('GUEST_NOT_RESPONDING', context)
  if (code === libvirtCodes.agentCommandFailed) return failure('GUEST_REFUSED', context)
  if (busyCodes.includes(code)) return failure('VM_BUSY', context)
  return failure('HYPERVISOR_REFUSED', context)
}

/** libvirt's number behind a failure; undefined for everything else. */
export function libvirtCode(error: unknown): number | undefined {
  const code = error instanceof Failure ? error.context.libvirtCode : undefined
  return typeof code === 'number' ? code : undefined
}

export const isFailure = (error: unknown, code: string): boolean => error instanceof Failure && error.code === code
