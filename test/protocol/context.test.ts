/**
 * Contexts and the auto-recovery window (V8). Source: "Shadow Copy Context Configurations", VSS_COMPONENT_FLAGS, and
 * "Overview of Processing a Backup Under VSS".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BackupComponents } from '../../src/vss/backup-components.ts'
import { snapshotAttributes, snapshotContexts } from '../../src/vss/vocabulary.ts'
import { WritableCopies } from '../../src/vss/windows.ts'
import { addEverything, twoWriters } from './world.ts'

const { VSS_VOLSNAP_ATTR_AUTORECOVER, VSS_VOLSNAP_ATTR_NO_AUTORECOVERY } = snapshotAttributes

async function attributesIn(context: number | undefined): Promise<number[]> {
  const { service, provider } = twoWriters()
  await using components = BackupComponents.initializeForBackup(service, 'full')
  if (context !== undefined) components.setContext(context)
  await addEverything(components)
  await components.startSnapshotSet()
  await components.addVolumesOfComponents()
  return [...new Set(provider.attributes.values())]
}

describe('the context of a session', () => {
  test('is VSS_CTX_BACKUP: components that ask for recovery get copies that can be recovered', async () => {
    assert.deepEqual(await attributesIn(undefined), [VSS_VOLSNAP_ATTR_AUTORECOVER])
    assert.deepEqual(await attributesIn(snapshotContexts.VSS_CTX_BACKUP), [VSS_VOLSNAP_ATTR_AUTORECOVER])
  })

  test('with NO_AUTORECOVERY no copy is writable, whatever its component asks for', async () => {
    assert.deepEqual(await attributesIn(VSS_VOLSNAP_ATTR_NO_AUTORECOVERY), [0])
  })

  test('is set once at most, first of all, and to nothing that is not built', async () => {
    const { service } = twoWriters()
    await using components = BackupComponents.initializeForBackup(service, 'full')
    assert.throws(() => components.setContext(0x9), { code: 'VSS_BAD_STATE' })
    await components.gatherWriterMetadata()
    assert.throws(() => components.setContext(0), { code: 'VSS_BAD_STATE' })
  })
})

describe('the auto-recovery window', () => {
  test('is open in PostSnapshot and closed when the copies are handed out', async () => {
    const { service, vms } = twoWriters()
    const seen: boolean[] = []
    let kept: WritableCopies | undefined
    vms.onPostSnapshot = async (_session, _copies, window?: WritableCopies) => {
      kept = window
      seen.push(window?.open ?? false)
      return []
    }
    await using components = BackupComponents.initializeForBackup(service, 'full')
    await addEverything(components)
    await components.startSnapshotSet()
    await components.addVolumesOfComponents()
    await components.prepareForBackup()
    await components.doSnapshotSet()
    assert.deepEqual(seen, [true])
    assert.ok(kept instanceof WritableCopies)
    assert.equal(kept.open, false, 'read-only from PostSnapshot on')
  })
})
