/**
 * The two XML documents of VSS: writer metadata and backup components. Every spelling of theirs is in this file.
 * Source: "Writer Metadata Document Contents" and "Backup Components Document Contents"; names that no public page
 * shows (backupSucceeded, fileRestoreStatus) are ours, and so is everything in the namespace urn:umbra:vss.
 * What a document has beyond our types is kept in the value and written out again.
 */
import type {
  BackedUpComponent,
  BackupComponentsDocument,
  ComponentMetadata,
  FileSpecification,
  WriterMetadata,
} from './components.ts'
import type { Volume } from './provider.ts'
import { backupTypes, type FileRestoreStatus } from './vocabulary.ts'
import { encodeJson, invalid, keeping, missing, ownNamespace, writeElement, XmlRecord } from './xml-record.ts'

const metadataName = 'a writer metadata document'
const metadataNamespace = 'x-schema:#VssWriterMetadataInfo'
const componentsName = 'a backup components document'
const componentsNamespace = 'x-schema:#VssComponentMetadata'

const fileRestoreStatuses = ['undefined', 'none', 'all', 'failed'] as const satisfies readonly FileRestoreStatus[]
/** The elements of the two types of component, and of their files. Log files of databases are kept, not read. */
const elementsOfType = {
  filegroup: { component: 'FILE_GROUP', files: 'FILE_LIST' },
  database: { component: 'DATABASE', files: 'DATABASE_FILES' },
} as const

// Attributes that say the same in each of our documents; another value in a document read is kept.
const metadataConstants = { version: '1.2', backupSchema: '0' }
const identificationConstants = { usage: 'USER_DATA', dataSource: 'OTHER', majorVersion: '1', minorVersion: '0' }
const restoreMethodConstants = { method: 'RESTORE_IF_CAN_BE_REPLACED', writerRestore: 'always', rebootRequired: 'no' }
const componentConstants = { restoreMetadata: 'no' }
/** VSS_FSBT_ALL_BACKUP_REQUIRED and VSS_FSBT_ALL_SNAPSHOT_REQUIRED. */
const fileConstants = { filespecBackupType: '3855' }
const documentConstants = {
  version: '1.2',
  bootableSystemStateBackup: 'no',
  selectComponents: 'yes',
  partialFileSupport: 'no',
}
const writerConstants = { backupSchema: '0' }

export function writeWriterMetadataDocument(metadata: WriterMetadata): string {
  const { writerId, instanceId, name, components } = metadata
  const identification = { writerId, instanceId, friendlyName: name, ...identificationConstants }
  return write(metadataName, 'WRITER_METADATA', {
    attributes: { ...namespaces(metadataNamespace), ...metadataConstants },
    of: metadata,
    children: [
      write(metadataName, 'IDENTIFICATION', { attributes: identification, of: metadata }),
      write(metadataName, 'RESTORE_METHOD', { attributes: restoreMethodConstants, of: metadata }),
      write(metadataName, 'BACKUP_LOCATIONS', {
        of: metadata,
        children: components.map((component) => writeComponent(component, writerId)),
      }),
    ],
  })
}

export function readWriterMetadataDocument(xml: string): WriterMetadata {
  const root = XmlRecord.parse(xml, metadataName, 'WRITER_METADATA', metadataNamespace)
  const identification = root.child('IDENTIFICATION')
  const restoreMethod = root.maybeChild('RESTORE_METHOD')
  const locations = root.child('BACKUP_LOCATIONS')
  const writerId = identification.text('writerId')
  const metadata = {
    writerId,
    instanceId: identification.text('instanceId'),
    name: identification.text('friendlyName'),
    components: locations.children('FILE_GROUP', 'DATABASE').map((record) => readComponent(record, writerId)),
  }
  return keeping(metadata, {
    WRITER_METADATA: root.rest(metadataConstants),
    IDENTIFICATION: identification.rest(identificationConstants),
    RESTORE_METHOD: restoreMethod === undefined ? missing : restoreMethod.rest(restoreMethodConstants),
    BACKUP_LOCATIONS: locations.rest(),
  })
}

function writeComponent(component: ComponentMetadata, writerId: string): string {
  if (component.writerId !== writerId) throw invalid(metadataName, `${component.name} belongs to another writer`)
  const names = elementsOfType[component.type]
  const attributes = {
    logicalPath: component.logicalPath || undefined,
    componentName: component.name,
    caption: component.caption,
    ...componentConstants,
    notifyOnBackupComplete: yesNo(component.notifyOnBackupComplete),
    selectable: yesNo(component.selectable),
    selectableForRestore: yesNo(component.selectableForRestore),
    componentFlags: String(component.flags),
    'umbra:label': component.label,
    'umbra:instant': component.instant,
    'umbra:plan': encodeJson(component.plan),
  }
  return write(metadataName, names.component, {
    attributes,
    of: component,
    children: [
      ...component.files.map((file) => writeFile(file, names.files)),
      ...component.volumes.map(writeVolume),
      ...component.obstacles.map((reason) => write(metadataName, 'umbra:OBSTACLE', { attributes: { reason } })),
    ],
  })
}

function readComponent(record: XmlRecord, writerId: string): ComponentMetadata {
  const type = record.name === 'DATABASE' ? 'database' : 'filegroup'
  const caption = record.optional('caption') ?? ''
  const component = {
    writerId,
    type,
    logicalPath: record.optional('logicalPath') ?? '',
    name: record.text('componentName'),
    caption,
    label: record.optional('umbra:label') ?? caption.replace(/^.*\\/s, ''),
    selectable: record.flag('selectable'),
    selectableForRestore: record.flag('selectableForRestore', false),
    notifyOnBackupComplete: record.flag('notifyOnBackupComplete', false),
    flags: record.integer('componentFlags'),
    files: record.children(elementsOfType[type].files).map(readFile),
    volumes: record.children('umbra:VOLUME').map(readVolume),
    instant: record.optional('umbra:instant') ?? 'set',
    plan: record.json('umbra:plan'),
    obstacles: record.children('umbra:OBSTACLE').map((obstacle) => obstacle.text('reason')),
  } as const
  return keeping(component, { [record.name]: record.rest(componentConstants) })
}

function writeFile(file: FileSpecification, name: string): string {
  const { path, filespec, recursive } = file
  // Files of a database are never recursive; the attribute appears there only if a writer said so all the same.
  const word = name === 'FILE_LIST' || recursive ? yesNo(recursive) : undefined
  return write(metadataName, name, { attributes: { path, filespec, recursive: word, ...fileConstants }, of: file })
}

function readFile(record: XmlRecord): FileSpecification {
  const file = {
    path: record.text('path'),
    filespec: record.text('filespec'),
    recursive: record.flag('recursive', false),
  }
  return keeping(file, { [record.name]: record.rest(fileConstants) })
}

function writeVolume(volume: Volume): string {
  const { id, component, caption, name } = volume
  const attributes = { id, component, caption, name, properties: encodeJson(volume.properties) }
  return write(metadataName, 'umbra:VOLUME', { attributes, of: volume })
}

function readVolume(record: XmlRecord): Volume {
  const volume = {
    id: record.text('id'),
    component: record.text('component'),
    caption: record.text('caption'),
    name: record.text('name'),
    properties: record.json('properties'),
  }
  return keeping(volume, { 'umbra:VOLUME': record.rest() })
}

export function writeBackupComponentsDocument(document: BackupComponentsDocument): string {
  const { backupType, snapshotSetId } = document
  return write(componentsName, 'BACKUP_COMPONENTS', {
    attributes: { ...namespaces(componentsNamespace), ...documentConstants, backupType, snapshotSetId },
    of: document,
    children: document.writers.map((writer) => {
      const { instanceId, writerId, name } = writer
      return write(componentsName, 'WRITER_COMPONENTS', {
        attributes: { instanceId, writerId, ...writerConstants, 'umbra:writerName': name },
        of: writer,
        children: writer.components.map((component) => writeBackedUp(component, writerId)),
      })
    }),
  })
}

export function readBackupComponentsDocument(xml: string): BackupComponentsDocument {
  const root = XmlRecord.parse(xml, componentsName, 'BACKUP_COMPONENTS', componentsNamespace)
  const document = {
    snapshotSetId: root.text('snapshotSetId'),
    backupType: root.word('backupType', backupTypes),
    writers: root.children('WRITER_COMPONENTS').map((record) => {
      const writerId = record.text('writerId')
      const writer = {
        writerId,
        instanceId: record.text('instanceId'),
        name: record.optional('umbra:writerName') ?? '',
        components: record.children('COMPONENT').map((component) => readBackedUp(component, writerId)),
      }
      return keeping(writer, { WRITER_COMPONENTS: record.rest(writerConstants) })
    }),
  }
  return keeping(document, { BACKUP_COMPONENTS: root.rest(documentConstants) })
}

function writeBackedUp(backedUp: BackedUpComponent, writerId: string): string {
  const { component, succeeded, metadata, fileRestoreStatus } = backedUp
  if (component.writerId !== writerId) throw invalid(componentsName, `${component.name} belongs to another writer`)
  const attributes = {
    logicalPath: component.logicalPath || undefined,
    componentName: component.name,
    componentType: component.type,
    backupSucceeded: yesNo(succeeded),
    fileRestoreStatus,
  }
  const blob = { xmlns: '', metadata: encodeJson(metadata) }
  const children = [write(componentsName, 'BACKUP_METADATA', { attributes: blob, of: backedUp })]
  return write(componentsName, 'COMPONENT', { attributes, of: backedUp, children })
}

function readBackedUp(record: XmlRecord, writerId: string): BackedUpComponent {
  const blob = record.maybeChild('BACKUP_METADATA')
  const backedUp = {
    component: {
      writerId,
      type: record.word('componentType', ['filegroup', 'database']),
      logicalPath: record.optional('logicalPath') ?? '',
      name: record.text('componentName'),
    },
    succeeded: record.flag('backupSucceeded', false),
    metadata: blob?.json('metadata') ?? {},
    fileRestoreStatus: record.word('fileRestoreStatus', fileRestoreStatuses, 'undefined'),
  }
  return keeping(backedUp, { COMPONENT: record.rest(), BACKUP_METADATA: blob?.rest() })
}

const write = writeElement
const yesNo = (flag: boolean) => (flag ? 'yes' : 'no')
const namespaces = (namespace: string) => ({ xmlns: namespace, 'xmlns:umbra': ownNamespace })
