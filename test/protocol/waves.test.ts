/**
 * Many instants in one set (A3): so many side by side, and no freeze that waits for another's.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BackupComponents } from '../../src/vss/backup-components.ts'
import { Recorder, RecordingProvider, RecordingWriter, vetoOf } from '../sim/recording.ts'
import { addEverything, countOf, world } from './world.ts'

const names = ['a', 'b', 'c', 'd', 'e', 'f', 'g']

function manyInstants() {
  const recorder = new Recorder()
  const writer = new RecordingWriter(
    recorder,
    'VM Writer',
    names.map((name) => ({ name, instant: name })),
  )
  const provider = new RecordingProvider(recorder)
  return { ...world({ recorder, writers: [writer], providers: [provider] }), writer, provider }
}

async function snapshotSet(host: ReturnType<typeof manyInstants>, instantsAtOnce: number): Promise<void> {
  await using components = BackupComponents.initializeForBackup({ ...host.service, instantsAtOnce }, 'full')
  await addEverything(components)
  await components.startSnapshotSet()
  await components.addVolumesOfComponents()
  await components.prepareForBackup()
  await components.doSnapshotSet()
}

describe('the instants of a set', () => {
  for (const atOnce of [1, 3]) {
    test(`are taken ${atOnce} side by side and never more, each frozen and thawed once`, async () => {
      const host = manyInstants()
      let open = 0
      let most = 0
      host.recorder.at('VM Writer', 'Freeze', async () => {
        most = Math.max(most, ++open)
        await new Promise(setImmediate)
      })
      host.recorder.at('VM Writer', 'Thaw', () => open--)
      await snapshotSet(host, atOnce)
      assert.equal(most, atOnce)
      assert.equal(open, 0)
      assert.equal(countOf(host, 'Freeze'), names.length)
      assert.equal(countOf(host, 'Thaw'), names.length)
    })
  }

  test('end with the wave in which one fails: nobody is frozen for nothing, all of that wave are thawed', async () => {
    const host = manyInstants()
    host.writer.onFreeze = async ({ components }) =>
      components.some(({ name }) => name === 'b' || name === 'c') ? [vetoOf('VM Writer', 'no')] : []
    await assert.rejects(snapshotSet(host, 3), { code: 'VSS_INSTANTS_FAILED' })
    assert.equal(countOf(host, 'Freeze'), 3)
    assert.equal(countOf(host, 'Thaw'), 3)
    assert.equal(host.provider.copies.size, 0)
  })
})
