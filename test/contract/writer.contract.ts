/**
 * What every writer must pass, whatever it looks after.
 * Source: "Overview of Processing a Backup Under VSS", "Aborting VSS Operations", "Handling BackupShutdown Events".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Cleanup, type UndoHandlers, type UndoRecord } from '../../src/base/cleanup.ts'
import { type ComponentRef, fullPath, refOf, type WriterMetadata } from '../../src/vss/components.ts'
import { readWriterMetadataDocument, writeWriterMetadataDocument } from '../../src/vss/documents.ts'
import { WritableCopies } from '../../src/vss/windows.ts'
import type { Writer, WriterSession } from '../../src/vss/writer.ts'
import { undoLog } from '../sim/undo-log.ts'

/** A writer with at least one component that can be backed up, in a world of its own. */
export interface WriterSubject extends AsyncDisposable {
  readonly writer: Writer
  readonly undoHandlers: UndoHandlers
  /** Everything that a backup must leave as it was, as plain data. */
  state(): Promise<unknown>
}

const steps = ['PrepareForBackup', 'PrepareForSnapshot', 'Freeze', 'Thaw', 'PostSnapshot'] as const

export function writerContract(name: string, open: () => Promise<WriterSubject>): void {
  describe(`${name} as a writer`, () => {
    const withSubject =
      (body: (subject: Omit<WriterSubject, keyof AsyncDisposable> & Opened) => Promise<void>) => async () => {
        await using subject = await open()
        const { writer, undoHandlers } = subject
        await body({ writer, undoHandlers, state: () => subject.state(), ...(await prepared(subject)) })
      }

    test(
      'answers Identify any number of times, and changes nothing by it',
      withSubject(async ({ writer, metadata, state }) => {
        const before = await state()
        assert.deepEqual(await writer.onIdentify(), metadata)
        assert.deepEqual(await state(), before)
      }),
    )

    test(
      'names itself and its components so that they can be told apart',
      withSubject(async ({ writer, metadata }) => {
        assert.deepEqual([metadata.writerId, metadata.instanceId], [writer.id, writer.instanceId])
        const paths = metadata.components.map(fullPath)
        assert.equal(new Set(paths).size, paths.length)
        const volumes = metadata.components.flatMap((component) => component.volumes)
        assert.equal(new Set(volumes.map(({ id }) => id)).size, volumes.length)
        for (const component of metadata.components) {
          assert.equal(component.writerId, writer.id)
          for (const volume of component.volumes) assert.equal(volume.component, component.name)
        }
      }),
    )

    test(
      'describes itself in metadata that survive their document',
      withSubject(async ({ metadata }) => {
        const plain = JSON.parse(JSON.stringify(metadata)) as WriterMetadata
        assert.deepEqual(readWriterMetadataDocument(writeWriterMetadataDocument(plain)), plain)
      }),
    )

    test(
      'goes through a whole backup without a veto, and leaves the world as it was',
      withSubject(async ({ writer, session, refs, state }) => {
        const before = await state()
        for (const step of steps) assert.deepEqual(await play(writer, session, step), [], step)
        const outcomes = await writer.outcomes(session)
        assert.deepEqual(outcomes.map(({ component }) => fullPath(component)).toSorted(), refs.map(fullPath).toSorted())
        assert.deepEqual(await writer.onBackupComplete(session, new Map(refs.map((ref) => [fullPath(ref), true]))), [])
        await writer.onBackupShutdown(session)
        assert.deepEqual(await state(), before)
      }),
    )

    for (const [index, last] of steps.entries()) {
      test(
        `an abort after ${last} leaves the world as it was, and a second one does no harm`,
        withSubject(async ({ writer, session, state }) => {
          const before = await state()
          for (const step of steps.slice(0, index + 1)) await play(writer, session, step)
          await writer.onAbort(session)
          await writer.onAbort(session)
          await writer.onBackupShutdown(session)
          assert.deepEqual(await state(), before)
        }),
      )

      test(
        `a crash after ${last} is put right by the undo records alone, any number of times`,
        withSubject(async ({ writer, session, records, undoHandlers, state }) => {
          const before = await state()
          for (const step of steps.slice(0, index + 1)) await play(writer, session, step)
          const stored = JSON.parse(JSON.stringify(records())) as UndoRecord[]
          for (let run = 0; run < 2; run++) {
            for (const record of stored.toReversed()) await undoHandlers[record.undo]?.(record)
          }
          assert.deepEqual(await state(), before)
        }),
      )
    }

    test(
      'a Thaw without a Freeze does no harm',
      withSubject(async ({ writer, session, state }) => {
        const before = await state()
        await writer.onPrepareBackup(session)
        await writer.onPrepareSnapshot(session)
        await writer.onThaw(session)
        await writer.onAbort(session)
        assert.deepEqual(await state(), before)
      }),
    )

    test(
      'BackupShutdown may be the only event',
      withSubject(async ({ writer, session, state }) => {
        const before = await state()
        await writer.onBackupShutdown(session)
        assert.deepEqual(await state(), before)
      }),
    )

    test(
      'Thaw and Abort work though the session was cancelled',
      withSubject(async ({ writer, session, state, cancel }) => {
        const before = await state()
        for (const step of steps.slice(0, 3)) await play(writer, session, step)
        cancel()
        await writer.onThaw({ ...session, signal: new AbortController().signal })
        await writer.onAbort({ ...session, signal: new AbortController().signal })
        assert.deepEqual(await state(), before)
      }),
    )
  })
}

interface Opened {
  readonly metadata: WriterMetadata
  readonly refs: readonly ComponentRef[]
  readonly session: WriterSession
  records(): readonly UndoRecord[]
  cancel(): void
}

async function prepared({ writer, undoHandlers }: WriterSubject): Promise<Opened> {
  const metadata = await writer.onIdentify()
  const refs = metadata.components.filter(({ obstacles }) => obstacles.length === 0).map(refOf)
  assert.ok(refs.length > 0, 'the subject offers a component')
  const { records, log } = undoLog()
  const controller = new AbortController()
  const session: WriterSession = {
    snapshotSetId: crypto.randomUUID(),
    components: refs,
    undo: new Cleanup(log, undoHandlers),
    emit: () => undefined,
    signal: controller.signal,
  }
  return { metadata, refs, session, records: () => [...records.values()], cancel: () => controller.abort() }
}

function play(writer: Writer, session: WriterSession, step: (typeof steps)[number]) {
  const handlers = {
    PrepareForBackup: () => writer.onPrepareBackup(session),
    PrepareForSnapshot: () => writer.onPrepareSnapshot(session),
    Freeze: () => writer.onFreeze(session),
    Thaw: () => writer.onThaw(session),
    PostSnapshot: () => writer.onPostSnapshot(session, [], new WritableCopies([], async () => undefined)),
  }
  return handlers[step]()
}
