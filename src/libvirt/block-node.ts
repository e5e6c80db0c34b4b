/**
 * Block nodes for QEMU: from where an image is stored and what format it has, to BlockdevOptions. Pure.
 * Follows the "QEMU QMP Reference Manual", BlockdevOptions and its members for file, host_device, nbd and rbd.
 */
import type { DiskStorage as ImageStorage, NbdStorage, RbdStorage } from '../vm/hypervisor.ts'
import type { ImageFormat } from './disk-image.ts'

export type BlockNode = Readonly<Record<string, unknown>>

/** The node of an image, named `nodeName`: its format, stated, above its storage. */
export function formatNode(format: ImageFormat, storage: ImageStorage, nodeName: string, writable: boolean): BlockNode {
  const access = writable ? { 'read-only': false, discard: 'unmap' } : { 'read-only': true }
  return { driver: format, 'node-name': nodeName, ...access, file: { ...storageNode(storage, nodeName), ...access } }
}

/** The secrets that the node's storage refers to, as options of --object. */
export function keyObjects(storage: ImageStorage, nodeName: string): BlockNode[] {
  if (!('rbd' in storage) || storage.rbd.keyFile === undefined) return []
  return [{ 'qom-type': 'secret', id: keyName(nodeName), file: storage.rbd.keyFile, format: 'base64' }]
}

function storageNode(storage: ImageStorage, nodeName: string): BlockNode {
  if ('file' in storage) return { driver: 'file', filename: storage.file }
  if ('blockDevice' in storage) return { driver: 'host_device', filename: storage.blockDevice }
  if ('nbd' in storage) return nbdNode(storage.nbd)
  return rbdNode(storage.rbd, nodeName)
}

function nbdNode(nbd: NbdStorage): BlockNode {
  const server =
    nbd.socketPath !== undefined
      ? { type: 'unix', path: nbd.socketPath }
      : { type: 'inet', host: nbd.host, port: String(nbd.port) }
  return { driver: 'nbd', server, export: nbd.exportName }
}

function rbdNode(rbd: RbdStorage, nodeName: string): BlockNode {
  const server = rbd.monitors.map(({ host, port }) => ({ host, port: String(port) }))
  return {
    driver: 'rbd',
    pool: rbd.pool,
    image: rbd.image,
    ...(server.length === 0 ? {} : { server }),
    ...(rbd.user === undefined ? {} : { user: rbd.user }),
    ...(rbd.namespace === undefined ? {} : { namespace: rbd.namespace }),
    ...(rbd.snapshot === undefined ? {} : { snapshot: rbd.snapshot }),
    ...(rbd.configFile === undefined ? {} : { conf: rbd.configFile }),
    ...(rbd.keyFile === undefined ? {} : { 'key-secret': keyName(nodeName) }),
  }
}

function keyName(nodeName: string): string {
  return `${nodeName}-key`
}
