/**
 * A recovery point of VMs made by hand, as a backup would leave it: disks, configuration and the documents that name them.
 */
import type { JsonObject } from '../../src/base/cleanup.ts'
import type { RecoveryPoint, Repository } from '../../src/repository/repository.ts'
import { writeBackupComponentsDocument } from '../../src/vss/documents.ts'
import { hyperVWriterId } from '../../src/vss/vocabulary.ts'

export interface StoredVm {
  readonly name: string
  readonly uuid: string
  /** Content by target. */
  readonly disks: Readonly<Record<string, Uint8Array>>
  readonly configuration?: string
  /** Further small files by name. */
  readonly documents?: Readonly<Record<string, string>>
  readonly excluded?: readonly { readonly target: string; readonly reason: string }[]
}

export async function storeVms(repository: Repository, vms: readonly StoredVm[]): Promise<RecoveryPoint> {
  const zeros = Buffer.alloc(repository.chunkSizeBytes)
  await using draft = await repository.beginPoint()
  for (const vm of vms) {
    for (const [target, content] of Object.entries(vm.disks)) {
      await using stream = await draft.openStream(`${vm.uuid}/disks/${target}`, content.length)
      for (let chunk = 0; chunk * repository.chunkSizeBytes < content.length; chunk++) {
        const bytes = content.subarray(chunk * repository.chunkSizeBytes, (chunk + 1) * repository.chunkSizeBytes)
        if (!zeros.subarray(0, bytes.length).equals(bytes)) await stream.writeChunk(chunk, bytes)
      }
      await stream.finish()
    }
    const documents = { 'configuration.xml': vm.configuration ?? configurationOf(vm), ...vm.documents }
    for (const [name, text] of Object.entries(documents))
      await draft.putDocument(`${vm.uuid}/${name}`, Buffer.from(text))
  }
  const components = vms.map((vm) => ({
    component: { writerId: hyperVWriterId, type: 'filegroup', logicalPath: '', name: vm.uuid } as const,
    succeeded: true,
    metadata: metadataOf(vm),
    fileRestoreStatus: 'undefined' as const,
  }))
  const writer = { writerId: hyperVWriterId, instanceId: crypto.randomUUID(), name: 'Umbra VM Writer', components }
  const document = { snapshotSetId: crypto.randomUUID(), backupType: 'full' as const, writers: [writer] }
  await draft.putDocument('backup-components.xml', Buffer.from(writeBackupComponentsDocument(document)))
  return draft.commit({ vms: vms.map(({ name, uuid }) => ({ name, uuid, power: 'off', method: 'offline' })) })
}

function metadataOf({ name, uuid, excluded = [] }: StoredVm): JsonObject {
  return { name, uuid, power: 'off', excluded: excluded.map((one) => ({ ...one })) }
}

function configurationOf({ name, uuid, disks }: StoredVm): string {
  const devices = Object.keys(disks).map(
    (target) => `
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/vms/${uuid}/${target}.qcow2'/>
      <target dev='${target}' bus='virtio'/>
    </disk>`,
  )
  return `<domain type='kvm'>
  <name>${name}</name>
  <uuid>${uuid}</uuid>
  <memory unit='KiB'>131072</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>${devices.join('')}
  </devices>
</domain>
`
}
