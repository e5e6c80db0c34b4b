/**
 * What a recovery point has of its components: found by the names their owners know, with documents and disks to read.
 */
import { failure } from '../errors.ts'
import type { RecoveryPoint } from '../repository/repository.ts'
import type { BackedUpComponent } from '../vss/components.ts'
import { readBackupComponentsDocument } from '../vss/documents.ts'
import type { StoredComponent } from '../vss/restore-plan.ts'

/** The components of a point that are called `names`, by name or UUID; all when empty. VM_NOT_FOUND. */
export async function findStored(
  point: RecoveryPoint,
  names: readonly string[],
): Promise<readonly BackedUpComponent[]> {
  const document = await point.readDocument('backup-components.xml')
  const { writers } = readBackupComponentsDocument(new TextDecoder().decode(document))
  const all = writers.flatMap(({ components }) => components)
  const isCalled = (one: BackedUpComponent, name: string) =>
    labelOf(one) === name || one.component.name === name.toLowerCase()
  const unknown = names.filter((name) => !all.some((one) => isCalled(one, name)))
  if (unknown.length > 0) throw failure('VM_NOT_FOUND', { vm: unknown.join(', '), known: all.map(labelOf).join(', ') })
  return names.length === 0 ? all : all.filter((one) => names.some((name) => isCalled(one, name)))
}

const labelOf = ({ component, metadata }: BackedUpComponent) => String(metadata.name ?? component.name)

/** Its small files, and the names and sizes of its streams. */
export async function readStored(
  point: RecoveryPoint,
  { component, metadata }: BackedUpComponent,
): Promise<StoredComponent> {
  const prefix = `${component.name}/`
  const streams = point.streams
    .filter(({ name }) => name.startsWith(prefix))
    .map(({ name, sizeBytes }) => [name.slice(prefix.length), sizeBytes] as const)
  const documents: Record<string, Uint8Array> = {}
  for (const name of point.documents.filter((one) => one.startsWith(prefix))) {
    documents[name.slice(prefix.length)] = await point.readDocument(name)
  }
  return { component, metadata, streams: Object.fromEntries(streams), documents }
}
