/** UUIDs as libvirt's wire has them (16 bytes) and as people write them (RFC 9562, section 4). */
import { failure } from '../errors.ts'

const pattern = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i

export const isUuid = (text: string): boolean => pattern.test(text)

export function formatUuid(bytes: Buffer): string {
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

export function uuidBytes(uuid: string): Buffer {
  if (!isUuid(uuid)) throw failure('VM_NOT_FOUND', { vm: uuid, known: 'VMs with a proper UUID only' })
  return Buffer.from(uuid.replaceAll('-', ''), 'hex')
}
