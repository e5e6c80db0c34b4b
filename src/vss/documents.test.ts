/**
 * The two documents of VSS: shape, round trips, what strangers wrote, and hostile input.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { JsonObject } from '../base/cleanup.ts'
import { Failure } from '../base/failure.ts'
import type { BackupComponentsDocument, ComponentMetadata, WriterMetadata } from './components.ts'
import {
  readBackupComponentsDocument,
  readWriterMetadataDocument,
  writeBackupComponentsDocument,
  writeWriterMetadataDocument,
} from './documents.ts'
import { backupTypes } from './vocabulary.ts'
import { maxDocumentChars } from './xml-record.ts'

const writerId = '66841cd4-6ded-4f4b-8f17-fd23f8ddc3de'
const web01: ComponentMetadata = {
  writerId,
  type: 'filegroup',
  logicalPath: '',
  name: '0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10',
  caption: 'Online\\web01',
  label: 'web01',
  selectable: true,
  selectableForRestore: true,
  notifyOnBackupComplete: false,
  flags: 1,
  files: [{ path: '/var/lib/libvirt/images/', filespec: 'web01.qcow2', recursive: false }],
  volumes: [{ id: 'web01/vda', component: 'web01', caption: 'web01', name: 'vda', properties: { target: 'vda' } }],
  instant: 'set',
  plan: { method: 'guest-freeze' },
  obstacles: ['it is "occupied" & <busy>'],
}
const metadata: WriterMetadata = {
  writerId,
  instanceId: '7d3f2a60-52a1-4a7e-8a3a-6c7f8f1d2e3b',
  name: 'Umbra VM Writer',
  components: [web01],
}
const components: BackupComponentsDocument = {
  snapshotSetId: '11111111-2222-4333-8444-555555555555',
  backupType: 'full',
  writers: [
    {
      writerId,
      instanceId: metadata.instanceId,
      name: metadata.name,
      components: [
        {
          component: { writerId, type: 'filegroup', logicalPath: '', name: web01.name },
          succeeded: true,
          metadata: { power: 'running' },
          fileRestoreStatus: 'undefined',
        },
      ],
    },
  ],
}

describe('the writer metadata document', () => {
  test('has the shape of VSS, with what is ours in a namespace of its own', () => {
    assert.equal(
      writeWriterMetadataDocument(metadata),
      `<WRITER_METADATA xmlns="x-schema:#VssWriterMetadataInfo" xmlns:umbra="urn:umbra:vss" version="1.2" backupSchema="0">
<IDENTIFICATION writerId="66841cd4-6ded-4f4b-8f17-fd23f8ddc3de" instanceId="7d3f2a60-52a1-4a7e-8a3a-6c7f8f1d2e3b" friendlyName="Umbra VM Writer" usage="USER_DATA" dataSource="OTHER" majorVersion="1" minorVersion="0"/>
<RESTORE_METHOD method="RESTORE_IF_CAN_BE_REPLACED" writerRestore="always" rebootRequired="no"/>
<BACKUP_LOCATIONS>
<FILE_GROUP componentName="0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10" caption="Online\\web01" restoreMetadata="no" notifyOnBackupComplete="no" selectable="yes" selectableForRestore="yes" componentFlags="1" umbra:label="web01" umbra:instant="set" umbra:plan="eyJtZXRob2QiOiJndWVzdC1mcmVlemUifQ==">
<FILE_LIST path="/var/lib/libvirt/images/" filespec="web01.qcow2" recursive="no" filespecBackupType="3855"/>
<umbra:VOLUME id="web01/vda" component="web01" caption="web01" name="vda" properties="eyJ0YXJnZXQiOiJ2ZGEifQ=="/>
<umbra:OBSTACLE reason="it is &#x22;occupied&#x22; &#x26; &#x3C;busy&#x3E;"/>
</FILE_GROUP>
</BACKUP_LOCATIONS>
</WRITER_METADATA>`,
    )
  })

  test('reads back what was written', () => {
    assert.deepEqual(readWriterMetadataDocument(writeWriterMetadataDocument(metadata)), metadata)
  })

  test('reads a document that a Windows writer could have made', () => {
    const read = readWriterMetadataDocument(`
      <WRITER_METADATA xmlns="x-schema:#VssWriterMetadataInfo" version="1.2" backupSchema="881">
        <IDENTIFICATION writerId="A65FAA63-5EA8-4EBC-9DBD-A0C4DB26912A" instanceId="B" instanceName="I"
          friendlyName="A database" usage="USER_DATA" dataSource="TRANSACTION_DB" majorVersion="1" minorVersion="0"/>
        <BACKUP_LOCATIONS>
          <EXCLUDE_FILES path="C:\\Temp" filespec="*" recursive="yes"/>
          <DATABASE logicalPath="HOST" componentName="sales" caption="Sales" restoreMetadata="no"
              notifyOnBackupComplete="yes" selectable="yes" selectableForRestore="no" componentFlags="0">
            <DATABASE_FILES path="D:\\Data" filespec="sales.mdf" filespecBackupType="3855"/>
            <DATABASE_LOGFILES path="E:\\Logs" filespec="sales.ldf" filespecBackupType="3855"/>
          </DATABASE>
        </BACKUP_LOCATIONS>
      </WRITER_METADATA>`)
    const [sales] = read.components
    assert.deepEqual(
      [sales?.type, sales?.logicalPath, sales?.name, sales?.label, sales?.instant],
      ['database', 'HOST', 'sales', 'Sales', 'set'],
    )
    assert.deepEqual(sales?.files, [{ path: 'D:\\Data', filespec: 'sales.mdf', recursive: false }])
    const again = writeWriterMetadataDocument({ ...read, components: read.components.map((one) => ({ ...one })) })
    for (const kept of [
      'backupSchema="881"',
      'instanceName="I"',
      'dataSource="TRANSACTION_DB"',
      'EXCLUDE_FILES',
      'sales.ldf',
    ]) {
      assert.ok(again.includes(kept), `${kept} survives`)
    }
    assert.ok(!again.includes('RESTORE_METHOD method="RESTORE'), 'no restore method is invented')
  })
})

describe('the backup components document', () => {
  test('has the shape of VSS, and no path of any file', () => {
    assert.equal(
      writeBackupComponentsDocument(components),
      `<BACKUP_COMPONENTS xmlns="x-schema:#VssComponentMetadata" xmlns:umbra="urn:umbra:vss" version="1.2" bootableSystemStateBackup="no" selectComponents="yes" partialFileSupport="no" backupType="full" snapshotSetId="11111111-2222-4333-8444-555555555555">
<WRITER_COMPONENTS instanceId="7d3f2a60-52a1-4a7e-8a3a-6c7f8f1d2e3b" writerId="66841cd4-6ded-4f4b-8f17-fd23f8ddc3de" backupSchema="0" umbra:writerName="Umbra VM Writer">
<COMPONENT componentName="0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10" componentType="filegroup" backupSucceeded="yes" fileRestoreStatus="undefined">
<BACKUP_METADATA xmlns="" metadata="eyJwb3dlciI6InJ1bm5pbmcifQ=="/>
</COMPONENT>
</WRITER_COMPONENTS>
</BACKUP_COMPONENTS>`,
    )
  })

  test('reads back what was written', () => {
    assert.deepEqual(readBackupComponentsDocument(writeBackupComponentsDocument(components)), components)
  })

  test('keeps attributes and elements that it does not know, also those of strangers, through a change of a value', () => {
    const written = writeBackupComponentsDocument(components)
      .replace('<COMPONENT ', '<COMPONENT xmlns:x="urn:x" x:color="re&#xA;d" backupStamp="c3RhbXA=" ')
      .replace(
        '</COMPONENT>',
        '<PARTIAL_FILE path="/a"><RANGE at="1"/></PARTIAL_FILE><x:note xmlns:x="urn:x">n</x:note></COMPONENT>',
      )
      .replace('<WRITER_COMPONENTS', '<FUTURE xmlns="urn:y"/><WRITER_COMPONENTS')
      .replace('selectComponents="yes"', 'selectComponents="no"')
    const read = readBackupComponentsDocument(written)
    const changed: BackupComponentsDocument = {
      ...read,
      writers: read.writers.map((writer) => ({
        ...writer,
        components: writer.components.map((one) => ({ ...one, fileRestoreStatus: 'all' as const })),
      })),
    }
    const again = writeBackupComponentsDocument(changed)
    assert.ok(again.includes('fileRestoreStatus="all"'))
    for (const kept of [
      'color="re&#xA;d"',
      'backupStamp="c3RhbXA="',
      'RANGE at="1"',
      '>n<',
      '<FUTURE xmlns="urn:y"/>',
      'selectComponents="no"',
    ]) {
      assert.ok(again.includes(kept), `${kept} survives`)
    }
    assert.deepEqual(
      writeBackupComponentsDocument(readBackupComponentsDocument(again)),
      again,
      'and is stable from then on',
    )
  })
})

describe('any text', () => {
  const record = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(model, { noNullPrototype: true })
  const carried = fc
    .array(
      fc.oneof(
        fc.string({ unit: 'binary' }),
        fc.constantFrom('\t', '\n', '\r\n', '\u0085', '\ufffd', '\u2028', ' ', ']]>', '&amp;', '<', '"'),
      ),
    )
    .map((parts) => parts.join(''))
    .filter((text) => !/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/u.test(text))
  const json = fc.dictionary(fc.string({ unit: 'binary' }), fc.jsonValue()).map(plain)
  const component = record({
    writerId: fc.constant(writerId),
    type: fc.constantFrom('filegroup', 'database'),
    logicalPath: carried,
    name: carried,
    caption: carried,
    label: carried,
    selectable: fc.boolean(),
    selectableForRestore: fc.boolean(),
    notifyOnBackupComplete: fc.boolean(),
    flags: fc.nat(),
    files: fc.array(record({ path: carried, filespec: carried, recursive: fc.boolean() }), { maxLength: 3 }),
    volumes: fc.array(record({ id: carried, component: carried, caption: carried, name: carried, properties: json }), {
      maxLength: 3,
    }),
    instant: carried,
    plan: json,
    obstacles: fc.array(carried, { maxLength: 3 }),
  })

  test('that XML can carry comes back as it was: writer metadata', () => {
    const any = record({
      writerId: fc.constant(writerId),
      instanceId: carried,
      name: carried,
      components: fc.array(component, { maxLength: 3 }),
    })
    fc.assert(
      fc.property(any, (value) => {
        assert.deepEqual(readWriterMetadataDocument(writeWriterMetadataDocument(value)), value)
      }),
    )
  })

  test('that XML can carry comes back as it was: backup components', () => {
    const backedUp = record({
      component: record({
        writerId: fc.constant(writerId),
        type: fc.constantFrom('filegroup', 'database'),
        logicalPath: carried,
        name: carried,
      }),
      succeeded: fc.boolean(),
      metadata: json,
      fileRestoreStatus: fc.constantFrom('undefined', 'none', 'all', 'failed'),
    })
    const any = record({
      snapshotSetId: carried,
      backupType: fc.constantFrom(...backupTypes),
      writers: fc.array(
        record({
          writerId: fc.constant(writerId),
          instanceId: carried,
          name: carried,
          components: fc.array(backedUp, { maxLength: 3 }),
        }),
        { maxLength: 2 },
      ),
    })
    fc.assert(
      fc.property(any, (value) => {
        assert.deepEqual(readBackupComponentsDocument(writeBackupComponentsDocument(value)), value)
      }),
    )
  })

  test('that XML can not carry is refused, never changed', () => {
    for (const text of ['\u0000', 'a\u0001', '\ud800', '\udc00x', '\ufffe', '\uffff']) {
      assert.throws(() => writeWriterMetadataDocument({ ...metadata, name: text }), invalidBecause(/XML can not carry/))
    }
  })

  test('in the JSON of a writer is unrestricted', () => {
    const metadataOfWriter = { 'k\u0000': ['\ud800', null, -1.5, { ü: '\uffff' }] }
    const [writer] = components.writers
    const [one] = writer?.components ?? []
    assert.ok(writer && one)
    const document = { ...components, writers: [{ ...writer, components: [{ ...one, metadata: metadataOfWriter }] }] }
    assert.deepEqual(readBackupComponentsDocument(writeBackupComponentsDocument(document)), document)
  })
})

describe('hostile input is VSS_INVALID_XML_DOCUMENT, with a reason', () => {
  const good = writeWriterMetadataDocument(metadata)
  const cases: Record<string, [string, RegExp]> = {
    nothing: ['', /./],
    'no XML': ['hello', /./],
    'a document cut off': [good.slice(0, -20), /./],
    'two roots': [`${good}${good}`, /./],
    'an attribute twice': [good.replace('version="1.2"', 'version="1.2" version="1.3"'), /./],
    'an undeclared prefix': [good.replace('umbra:label', 'other:label'), /./],
    'a document type': [`<!DOCTYPE WRITER_METADATA>${good}`, /document type/],
    entities: [`<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>${good}`, /entities/],
    CDATA: [good.replace('<BACKUP_LOCATIONS>', '<BACKUP_LOCATIONS><![CDATA[x]]>'), /CDATA/],
    'an entity nobody declared': [good.replace('"web01"', '"&boom;"'), /./],
    'a character that is none': [good.replace('"web01"', '"&#1;"'), /./],
    'another root': [good.replaceAll('WRITER_METADATA', 'BACKUP_COMPONENTS'), /begins with BACKUP_COMPONENTS/],
    'another namespace': [good.replace('#VssWriterMetadataInfo', '#Other'), /begins with/],
    'no identification': [good.replace(/<IDENTIFICATION[^>]*>/, ''), /has no IDENTIFICATION/],
    'two identifications': [good.replace(/<IDENTIFICATION[^>]*>/, '$&$&'), /more than one IDENTIFICATION/],
    'no name': [good.replace('componentName=', 'other='), /FILE_GROUP has no componentName/],
    'neither yes nor no': [good.replace('selectable="yes"', 'selectable="1"'), /neither yes nor no/],
    'flags that are no number': [good.replace('componentFlags="1"', 'componentFlags="0x1"'), /not a number/],
    'flags beyond all numbers': [
      good.replace('componentFlags="1"', 'componentFlags="9999999999999999"'),
      /not a number/,
    ],
    'a plan that is no base64': [good.replace(/umbra:plan="[^"]*"/, 'umbra:plan="%%%"'), /base64 of a JSON object/],
    'a plan that is no JSON': [good.replace(/umbra:plan="[^"]*"/, `umbra:plan="${btoa('{')}"`), /JSON object/],
    'a plan that is a list': [good.replace(/umbra:plan="[^"]*"/, `umbra:plan="${btoa('[]')}"`), /JSON object/],
    'too much': [' '.repeat(maxDocumentChars + 1), /more than/],
  }
  for (const [name, [xml, reason]] of Object.entries(cases)) {
    test(name, () => {
      assert.throws(() => readWriterMetadataDocument(xml), invalidBecause(reason))
    })
  }

  test('nesting without end does not break the reader', () => {
    const depth = 20_000
    const nested = `${'<a>'.repeat(depth)}${'</a>'.repeat(depth)}`
    try {
      readWriterMetadataDocument(good.replace('<BACKUP_LOCATIONS>', `<BACKUP_LOCATIONS>${nested}`))
    } catch (error) {
      assert.ok(invalidBecause(/./)(error))
    }
  })

  test('any damage to a document is either noticed or harmless, and nothing else is ever thrown', () => {
    const damage = fc.tuple(fc.nat(good.length), fc.nat(30), fc.string({ unit: 'binary', maxLength: 8 }))
    fc.assert(
      fc.property(damage, ([at, length, text]) => {
        try {
          readWriterMetadataDocument(good.slice(0, at) + text + good.slice(at + length))
        } catch (error) {
          assert.ok(invalidBecause(/./)(error))
        }
      }),
    )
  })

  test('a component of another writer is not written into a document', () => {
    const stray = { ...metadata, components: [{ ...web01, writerId: 'other' }] }
    assert.throws(() => writeWriterMetadataDocument(stray), invalidBecause(/belongs to another writer/))
  })
})

function invalidBecause(reason: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof Failure, String(error))
    assert.equal(error.code, 'VSS_INVALID_XML_DOCUMENT')
    assert.match(String(error.context.reason), reason)
    return true
  }
}

/** What JSON can say: no negative zero, no prototype. */
function plain(value: unknown): JsonObject {
  return JSON.parse(JSON.stringify(value)) as JsonObject
}
