/**
 * The listings, compared with what administrators know from vssadmin and DiskShadow.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { hyperVWriterId, writerStates } from '../vss/vocabulary.ts'
import { type ListedWriter, renderWriters, renderWritersDetailed } from './writers-listing.ts'

const writer = { id: hyperVWriterId, instanceId: '7d3f2a60-52a1-4a7e-8a3a-6c7f8f1d2e3b', name: 'Umbra VM Writer' }
const web01: ListedWriter = {
  writer,
  state: 'stable',
  metadata: {
    writerId: writer.id,
    instanceId: writer.instanceId,
    name: writer.name,
    components: [
      {
        writerId: writer.id,
        type: 'filegroup',
        logicalPath: '',
        name: '0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10',
        caption: 'Online\\web01',
        label: 'web01',
        selectable: true,
        selectableForRestore: true,
        notifyOnBackupComplete: false,
        flags: 1,
        files: [
          { path: '/var/lib/libvirt/images/', filespec: 'web01.qcow2', recursive: false },
          { path: '/var/lib/libvirt/images/', filespec: 'web01-data.qcow2', recursive: false },
        ],
        volumes: [{ id: 'web01/vda', component: 'web01', caption: 'web01', name: 'vda', properties: {} }],
        instant: 'set',
        plan: {},
        obstacles: [],
      },
    ],
  },
}

describe('umbra writers', () => {
  test('has the shape of vssadmin list writers', () => {
    const failed: ListedWriter = {
      writer: {
        id: '3a5c6c1e-52f0-4f43-9a0b-6a1f4a2f7c11',
        instanceId: 'b7f1c1c4-7b3e-4d7c-8a55-2f0e7f1f9d22',
        name: 'Ledger Writer',
      },
      state: 'failed-at-prepare-snapshot',
      lastError: 'VSS_E_WRITERERROR_INCONSISTENTSNAPSHOT',
    }
    assert.equal(
      renderWriters([web01, failed], '0.1.0'),
      `umbra 0.1.0 - Volume Shadow Copy writers of this host

Writer name: 'Umbra VM Writer'
   Writer Id: {66841cd4-6ded-4f4b-8f17-fd23f8ddc3de}
   Writer Instance Id: {7d3f2a60-52a1-4a7e-8a3a-6c7f8f1d2e3b}
   State: [1] Stable
   Last error: No error

Writer name: 'Ledger Writer'
   Writer Id: {3a5c6c1e-52f0-4f43-9a0b-6a1f4a2f7c11}
   Writer Instance Id: {b7f1c1c4-7b3e-4d7c-8a55-2f0e7f1f9d22}
   State: [8] Failed
   Last error: Inconsistent shadow copy
`,
    )
  })

  test('prints every state with the number of VSS_WRITER_STATE', () => {
    const states = writerStates.map((state) => /State: (.*)/.exec(renderWriters([{ writer, state }], '0'))?.[1])
    assert.deepEqual(states, [
      '[0] Unknown',
      '[1] Stable',
      '[2] Waiting for freeze',
      '[3] Frozen',
      '[4] Waiting for post-snapshot',
      '[5] Waiting for completion',
      ...[6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map((digit) => `[${digit}] Failed`),
    ])
  })

  test('prints the last error in the words of vssadmin', () => {
    const words = (
      [
        'VSS_E_WRITERERROR_INCONSISTENTSNAPSHOT',
        'VSS_E_WRITERERROR_OUTOFRESOURCES',
        'VSS_E_WRITERERROR_TIMEOUT',
        'VSS_E_WRITERERROR_RETRYABLE',
        'VSS_E_WRITERERROR_NONRETRYABLE',
      ] as const
    ).map((lastError) => /Last error: (.*)/.exec(renderWriters([{ writer, state: 'stable', lastError }], '0'))?.[1])
    assert.deepEqual(words, [
      'Inconsistent shadow copy',
      'Out of resources',
      'Timed out',
      'Retryable error',
      'Non-retryable error',
    ])
  })

  test('lets no name steer the terminal', () => {
    const name = 'web\u001b[2J\n\u009b1m'
    assert.ok(renderWriters([{ writer: { ...writer, name }, state: 'stable' }], '0').includes("'web?[2J??1m'"))
  })

  test('without writers is its banner', () => {
    assert.equal(renderWriters([], '0.1.0'), 'umbra 0.1.0 - Volume Shadow Copy writers of this host\n')
  })
})

describe('umbra writers --detailed', () => {
  test('has the shape of DiskShadow list writers detailed', () => {
    assert.equal(
      renderWritersDetailed([web01], '0.1.0'),
      `umbra 0.1.0 - Volume Shadow Copy writers of this host

* WRITER "Umbra VM Writer"
    - Writer ID   = {66841cd4-6ded-4f4b-8f17-fd23f8ddc3de}
    - Writer instance ID = {7d3f2a60-52a1-4a7e-8a3a-6c7f8f1d2e3b}
    + Component "Umbra VM Writer:\\0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10"
        - Name: 0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10
        - Logical path:
        - Full path: \\0b6d9c1e-7a55-4f0e-9a57-5d2a6c3f1b10
        - Caption: Online\\web01
        - Type: VSS_CT_FILEGROUP [2]
        - Is selectable: TRUE
        - Is top level: TRUE
        - Notify on backup complete: FALSE
        - Components:
            - File List: Path = /var/lib/libvirt/images/, Filespec = web01.qcow2
            - File List: Path = /var/lib/libvirt/images/, Filespec = web01-data.qcow2
        - Paths affected by this component:
            - /var/lib/libvirt/images/
        - Volumes affected by this component:
            - web01/vda [vda]
        - Component Dependencies:
`,
    )
  })

  test('names what keeps a component from being backed up', () => {
    const [component] = web01.metadata?.components ?? []
    assert.ok(web01.metadata && component)
    const occupied = { ...web01.metadata, components: [{ ...component, obstacles: ['a block job runs'] }] }
    assert.match(
      renderWritersDetailed([{ ...web01, metadata: occupied }], '0'),
      /^ {8}- Can not be backed up: a block job runs$/m,
    )
  })

  test('of a writer that did not answer is its name and ids', () => {
    const { metadata: _, ...silent } = web01
    assert.equal(renderWritersDetailed([silent], '0').trim().split('\n').length, 5)
  })
})
