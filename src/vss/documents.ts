/**
 * The two XML documents of VSS: writer metadata and backup components. Every spelling of theirs is in this file.
 * Source: "Writer Metadata Document Contents" and "Backup Components Document Contents"; names that no public page
 * shows (backupSucceeded, fileRestoreStatus) are ours, and so is everything in the namespace urn:umbra:vss.
 * What a document has beyond our types is kept in the value (see xml-record.ts) and written out again.
 */
import type { JsonObject } from '../base/cleanup.ts'
import type {
  BackedUpComponent,
  BackupComponentsDocument,
  ComponentMetadata,
  ComponentRef,
  FileSpecification,
  WriterMetadata,
} from './components.ts'
import type { Volume } from './provider.ts'
import { type BackupType, backupTypes, type FileRestoreStatus } from './vocabulary.ts'
import { decodeJson, element, encodeJson, invalid, XmlRecord } from './xml-record.ts'

const metadataName = 'a writer metadata document'
const metadataNamespace = 'x-schema:#VssWriterMetadataInfo'
const componentsName = 'a backup components document'
const componentsNamespace = 'x-schema:#VssComponentMetadata'
/** VSS_FSBT_ALL_BACKUP_REQUIRED | VSS_FSBT_ALL_SNAPSHOT_REQUIRED, the value of every file in the documents seen. */
const filespecBackupType = '3855'
const fileRestoreStatuses = ['undefined', 'none', 'all', 'failed'] as const satisfies readonly FileRestoreStatus[]
/** The plain elements of the two kinds of component. A database's log files are kept as an extra. */
const kinds = {
  filegroup: { element: 'FILE_GROUP', files: 'FILE_LIST' },
  database: { element: 'DATABASE', files: 'DATABASE_FILES' },
} as const

const metadataRoot = { xmlns: metadataNamespace, version: '1.2', backupSchema: '0' }
const identification = { usage: 'USER_DATA', dataSource: 'OTHER', majorVersion: '1', minorVersion: '0' }
const restoreMethod = { method: 'RESTORE_IF_CAN_BE_REPLACED', writerRestore: 'always', rebootRequired: 'no' }
const componentDefaults = { restoreMetadata: 'no' }
const componentsRoot = {
  xmlns: componentsNamespace,
  version: '1.2',
  bootableSystemStateBackup: 'no',
  selectComponents: 'yes',
  partialFileSupport: 'no',
}
const writerDefaults = { backupSchema: '0' }

export function writeWriterMetadataDocument(metadata: WriterMetadata): string {
  const { writerId, instanceId, name, components } = metadata
  for (const component of components) sameWriter(metadataName, component, writerId)
  return element(metadataName, 'WRITER_METADATA', { ...metadataRoot, 'xmlns:umbra': 'urn:umbra:vss' }, metadata, [
    element(metadataName, 'IDENTIFICATION', { writerId, instanceId, friendlyName: name, ...identification }),
    element(metadataName, 'RESTORE_METHOD', restoreMethod),
    element(metadataName, 'BACKUP_LOCATIONS', {}, undefined, components.map(writeComponent)),
  ])
}

export function readWriterMetadataDocument(xml: string): WriterMetadata {
  const root = XmlRecord.parse(xml, metadataName, 'WRITER_METADATA', metadataNamespace)
  const identity = root.child('IDENTIFICATION')
  const writerId = identity.text('writerId')
  const locations = root.child('BACKUP_LOCATIONS')
  const components = locations
    .children('FILE_GROUP', 'DATABASE')
    .map((record) => readComponent(record, writerId))
  const value = { writerId, instanceId: identity.text('instanceId'), name: identity.text('friendlyName'), components }
  return value
}
