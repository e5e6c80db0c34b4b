/**
 * A boot check from outside: the disks are served while it runs and not a moment longer, verdicts are kept on the point,
 * and a disk that can not be read is no passed check, whatever the guest makes of it.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { after, test } from 'node:test'
import type { UndoHandlers } from '../base/cleanup.ts'
import { systemClock } from '../base/clock.ts'
import { Failure } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { connectNbd } from '../disk/nbd-client.ts'
import type { NewCheck, RecoveryPoint, Repository } from '../repository/repository.ts'
import type { BootChecker, CheckPlan, CheckRequest, CheckVerdict } from '../vss/boot-check.ts'
import { writeBackupComponentsDocument } from '../vss/documents.ts'
import { check } from './check.ts'
import { journalDirectory } from './session.ts'

const writerId = '66841cd4-6ded-4f4b-8f17-fd23f8ddc3de'
const uuid = '11111111-2222-4333-8444-555555555555'
const component = { writerId, type: 'filegroup', logicalPath: '', name: uuid } as const
const request: CheckRequest = { order: [], probes: [], timeoutMs: 1000 }
const stateDirectory = await mkdtemp(join(tmpdir(), 'umbra-check-'))
after(() => rm(stateDirectory, { recursive: true }))

/** A disk of one MiB of sevens, the second half of which can not be read. */
const disk = (): BlockSource => ({
  sizeBytes: 1024 * 1024,
  async read(offset, target) {
    if (offset >= 512 * 1024) throw new Error('a chunk is damaged')
    target.fill(7)
  },
  async *extents(offset, length) {
    yield { offset, length, data: true }
  },
  [Symbol.asyncDispose]: async () => undefined,
})

const point = {
  id: '20261122T010203Z-ab2c',
  streams: [{ name: `${uuid}/disks/vda`, sizeBytes: 1024 * 1024 }],
  documents: [],
  openStream: async () => disk(),
  readDocument: async () =>
    Buffer.from(
      writeBackupComponentsDocument({
        snapshotSetId: uuid,
        backupType: 'full',
        writers: [
          {
            writerId,
            instanceId: uuid,
            name: 'VMs',
            components: [{ component, succeeded: true, metadata: { name: 'web' }, fileRestoreStatus: 'undefined' }],
          },
        ],
      }),
    ),
} as unknown as RecoveryPoint

interface Scene {
  readonly kept: NewCheck[]
  socketPath: string
}

function environment(
  work: (device: Awaited<ReturnType<typeof connectNbd>>) => Promise<void>,
  obstacles: string[] = [],
) {
  const scene: Scene = { kept: [], socketPath: '' }
  const verdict: CheckVerdict = { component, caption: 'web', passed: true, reason: 'it came up', evidence: {} }
  const checker: BootChecker<CheckPlan> = {
    planCheck(_stored, _request, place) {
      scene.socketPath = place.socketPath
      const exports = [{ name: '0-vda', component, stream: 'disks/vda' }]
      return { captions: ['web'], exports, steps: [], warnings: [], obstacles }
    },
    async runCheck() {
      await using device = await connectNbd({ socketPath: scene.socketPath, exportName: '0-vda' })
      await work(device)
      return [verdict]
    },
  }
  const repository = {
    addCheck: async (_point: string, made: NewCheck) => String(scene.kept.push(made)),
  } as unknown as Repository
  const handlers: UndoHandlers = { 'remove-check-directory': ({ path }) => rm(String(path), { recursive: true }) }
  const { signal } = new AbortController()
  const session = { what: 'check', stateDirectory, uri: 'sim:', handlers, clock: systemClock, signal } as const
  const directory = join(stateDirectory, 'checks')
  return { scene, settings: { repository, checker, directory, clock: systemClock, session } }
}

async function nothingLeft({ socketPath }: Scene): Promise<void> {
  assert.equal(existsSync(dirname(socketPath)), false)
  assert.deepEqual(await readdir(journalDirectory(stateDirectory)), [])
}

test('the disks are served while it runs, and the verdict is kept on the point', async () => {
  const { scene, settings } = environment(async (device) => {
    const bytes = Buffer.alloc(4096)
    await device.read(8192, bytes)
    assert.ok(bytes.every((byte) => byte === 7))
  })
  const { passed, vms, cleanup } = await check(point, ['web'], request, settings)
  assert.deepEqual([passed, vms[0]?.check, cleanup], [true, '1', []])
  assert.deepEqual(scene.kept, [{ vm: { name: 'web', uuid }, passed: true, reason: 'it came up', evidence: {} }])
  await nothingLeft(scene)
})

test('a disk that can not be read fails the check, and says where', async () => {
  const { scene, settings } = environment((device) => assert.rejects(device.read(768 * 1024, Buffer.alloc(4096))))
  const { passed } = await check(point, [], request, settings)
  assert.equal(passed, false)
  const [kept] = scene.kept
  assert.equal(kept?.passed, false)
  assert.match(
    kept.reason,
    /^it came up; the recovery point could not be read: disks\/vda at offset \d+: a chunk is damaged/,
  )
  await nothingLeft(scene)
})

test('what could not even be tried is an error and no verdict, and nothing is left', async () => {
  const { scene, settings } = environment(() => Promise.reject(new Error('libvirt is away')))
  await assert.rejects(check(point, [], request, settings), /libvirt is away/)
  assert.deepEqual(scene.kept, [])
  await nothingLeft(scene)
})

test('obstacles end it before anything is made; what is not in the point is named', async () => {
  const { scene, settings } = environment(async () => undefined, ['there is no VM to start'])
  const code = (wanted: string) => (error: unknown) => error instanceof Failure && error.code === wanted
  await assert.rejects(check(point, [], request, settings), code('VSS_WRITER_VETO'))
  await assert.rejects(check(point, ['db'], request, settings), code('VM_NOT_FOUND'))
  assert.equal(existsSync(dirname(scene.socketPath)), false)
})
