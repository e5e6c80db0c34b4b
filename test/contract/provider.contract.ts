/**
 * What every provider must pass: the copy is of the instant, nothing is left, and everything may come twice.
 * Source: "Shadow Copy Creation for Providers", "Required Behaviors for Shadow Copy Providers".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Cleanup, type UndoHandlers } from '../../src/base/cleanup.ts'
import { systemClock } from '../../src/base/clock.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../../src/vss/provider.ts'
import { defaultLimits } from '../../src/vss/vocabulary.ts'
import { FrozenWriters, HeldWrites } from '../../src/vss/windows.ts'
import { undoLog } from '../sim/undo-log.ts'

/** A provider and volumes that it supports, all of which can be written to. */
export interface ProviderSubject extends AsyncDisposable {
  readonly provider: Provider
  readonly volumes: readonly Volume[]
  readonly undoHandlers: UndoHandlers
  /** Makes the volume's content differ from what it was. */
  change(volume: Volume): Promise<void>
  /** The volume's content now. */
  content(volume: Volume): Promise<Uint8Array>
  /** What is left of sets on the host, as plain data; empty when nothing is. */
  residue(): Promise<readonly string[]>
}

const steps = [
  'BeginPrepareSnapshot',
  'EndPrepareSnapshots',
  'PreCommitSnapshots',
  'CommitSnapshots',
  'PostCommitSnapshots',
  'PreFinalCommitSnapshots',
  'PostFinalCommitSnapshots',
] as const

export function providerContract(name: string, open: () => Promise<ProviderSubject>): void {
  describe(`${name} as a provider`, () => {
    test('supports its own volumes and no others', async () => {
      await using subject = await open()
      for (const volume of subject.volumes) assert.ok((await subject.provider.supports(volume)) > 0)
      const strange: Volume = { id: 's', component: 's', caption: 's', name: 's', properties: { kind: 'strange' } }
      assert.equal(await subject.provider.supports(strange), 0)
    })

    test('its copies hold the content of the instant, whatever is written afterwards', async () => {
      await using subject = await open()
      const before = new Map<string, Uint8Array>()
      for (const volume of subject.volumes) before.set(volume.id, await subject.content(volume))
      const session = newSession(subject)
      const { copies, instants } = await create(subject, session)
      for (const volume of subject.volumes) await subject.change(volume)
      assert.deepEqual(copies.map(({ volume }) => volume.id).toSorted(), [...before.keys()].toSorted())
      for (const copy of copies) {
        await using source = await copy.open()
        const bytes = new Uint8Array(source.sizeBytes)
        await source.read(0, bytes)
        assert.deepEqual(bytes, before.get(copy.volume.id), copy.volume.id)
      }
      const components = new Set(subject.volumes.map(({ component }) => component))
      assert.deepEqual(new Set(instants.map(({ component }) => component)), components)
      for (const { beganMs, endedMs } of instants) assert.ok(beganMs <= endedMs)
      await subject.provider.deleteSnapshots(session)
    })

    test('deleting the set leaves nothing, and keeps what was written since; twice does no harm', async () => {
      await using subject = await open()
      const session = newSession(subject)
      await create(subject, session)
      const changed = new Map<Volume, Uint8Array>()
      for (const volume of subject.volumes) {
        await subject.change(volume)
        changed.set(volume, await subject.content(volume))
      }
      await subject.provider.deleteSnapshots(session)
      await subject.provider.deleteSnapshots(session)
      assert.deepEqual(await subject.residue(), [])
      for (const [volume, content] of changed) assert.deepEqual(await subject.content(volume), content, volume.id)
    })

    for (const last of steps) {
      test(`an abort after ${last} leaves nothing; a second one and a deletion do no harm`, async () => {
        await using subject = await open()
        const session = newSession(subject)
        await create(subject, session, last)
        await subject.provider.abortSnapshots(session)
        await subject.provider.abortSnapshots(session)
        await subject.provider.deleteSnapshots(session)
        assert.deepEqual(await subject.residue(), [])
      })
    }

    test('an abort and a deletion before anything was prepared do no harm', async () => {
      await using subject = await open()
      const session = newSession(subject)
      await subject.provider.abortSnapshots(session)
      await subject.provider.deleteSnapshots(session)
      assert.deepEqual(await subject.residue(), [])
    })

    test('can make a set after another', async () => {
      await using subject = await open()
      for (let round = 0; round < 2; round++) {
        const session = newSession(subject)
        const { copies } = await create(subject, session)
        assert.equal(copies.length, subject.volumes.length)
        await subject.provider.deleteSnapshots(session)
      }
      assert.deepEqual(await subject.residue(), [])
    })
  })
}

function newSession({ undoHandlers }: ProviderSubject): ProviderSession {
  return {
    snapshotSetId: crypto.randomUUID(),
    undo: new Cleanup(undoLog().log, undoHandlers),
    emit: () => undefined,
    signal: new AbortController().signal,
    abandon: (reason) => {
      throw reason
    },
  }
}

/** The calls of DoSnapshotSet, up to and with `last`. */
async function create(
  { provider, volumes }: ProviderSubject,
  session: ProviderSession,
  last: (typeof steps)[number] = 'PostFinalCommitSnapshots',
): Promise<{ copies: readonly ShadowCopy[]; instants: readonly Instant[] }> {
  const upTo = steps.indexOf(last)
  const reached = (step: (typeof steps)[number]) => steps.indexOf(step) <= upTo
  const nobody = { freeze: async () => undefined, thaw: async () => undefined, expire: () => [] }
  const quiet = { hold: () => undefined, release: () => undefined }
  let instants: readonly Instant[] = []
  let copies: readonly ShadowCopy[] = []
  for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume, 0)
  if (reached('EndPrepareSnapshots')) await provider.endPrepareSnapshots(session)
  {
    await using frozen = await FrozenWriters.open(nobody, quiet, defaultLimits, systemClock)
    if (reached('PreCommitSnapshots')) await provider.preCommitSnapshots(session, volumes, frozen)
    {
      await using held = HeldWrites.open(frozen, defaultLimits, systemClock)
      if (reached('CommitSnapshots')) instants = await provider.commitSnapshots(session, volumes, held)
    }
    if (reached('PostCommitSnapshots')) await provider.postCommitSnapshots(session, volumes, frozen)
  }
  if (reached('PreFinalCommitSnapshots')) copies = await provider.preFinalCommitSnapshots(session)
  if (reached('PostFinalCommitSnapshots')) await provider.postFinalCommitSnapshots(session)
  return { copies, instants }
}
