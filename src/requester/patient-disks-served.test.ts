/**
 * Patient disks behind the NBD server: a repository that goes away and comes back, and a chunk that is damaged.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { type MemoryRepository, openMemoryRepository } from '../../test/sim/memory-repository.ts'
import { storeVms } from '../../test/sim/stored-vm.ts'
import { connectNbd } from '../disk/nbd-client.ts'
import { type ServedFailure, serveDisks } from '../disk/nbd-server.ts'
import type { Repository } from '../repository/repository.ts'
import { openDisksIn, openDisksOf, type PatienceOptions, PatientDisks } from './patient-disks.ts'

const mebibyte = 1024 * 1024
const uuid = '11111111-2222-4333-8444-555555555555'
const content = randomBytes(8 * mebibyte)

type Told = Pick<PatienceOptions, 'onAway'> & { readonly onFailure: (failed: ServedFailure) => void }

async function openServed(openAgain: () => Promise<Repository>, socketPath: string, { onFailure, ...told }: Told) {
  const disks = [{ name: 'vda', stream: `${uuid}/disks/vda`, sizeBytes: content.length }]
  await using stack = new AsyncDisposableStack()
  const [point] = await stack.use(await openAgain()).listPoints()
  assert.ok(point !== undefined)
  const open = () => openDisksIn(openAgain(), point.id, disks)
  const { signal } = new AbortController()
  const patient = stack.use(new PatientDisks(await openDisksOf(point, disks), { open, signal, ...told }))
  const served = [{ name: 'vda', source: patient.source('vda') }]
  stack.use(await serveDisks(served, { socketPath, onFailure }))
  const device = stack.use(await connectNbd({ socketPath, exportName: 'vda' }))
  const all = stack.move()
  return { device, [Symbol.asyncDispose]: () => all.disposeAsync() }
}

describe('a recovery point behind an NBD server', () => {
  it('pauses while all objects of the repository are away', async () => {
    await using stored = await openMemoryRepository(65_536)
    await storeVms(stored.repository, [{ name: 'web01', uuid, disks: { vda: content } }])
    const directory = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
    {
      const waiting = Promise.withResolvers<void>()
      const failures: ServedFailure[] = []
      await using served = await openServed(stored.openAgain, join(directory, 's'), {
        onAway: () => waiting.resolve(),
        onFailure: (failed) => failures.push(failed),
      })
      const away = new Map(stored.backend.objects)
      stored.backend.objects.clear()
      const bytes = Buffer.alloc(content.length)
      const reading = served.device.read(0, bytes)
      await waiting.promise
      for (const [key, object] of away) stored.backend.objects.set(key, object)
      await reading
      assert.deepEqual(
        failures.map(({ error }) => error),
        [],
      )
      assert.ok(bytes.equals(content))
    }
    await rm(directory, { recursive: true })
  })

  it('fails the reads of what is damaged, and no others', async () => {
    await using stored = await openMemoryRepository(65_536)
    await storeVms(stored.repository, [{ name: 'web01', uuid, disks: { vda: content } }])
    const directory = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
    {
      const failures: ServedFailure[] = []
      await using served = await openServed(stored.openAgain, join(directory, 's'), {
        onFailure: (failed) => failures.push(failed),
      })
      spoilOnePack(stored.backend)
      const outcomes = await Promise.allSettled(
        Array.from({ length: 128 }, (_, i) => served.device.read(i * 65_536, Buffer.alloc(65_536))),
      )
      const failed = outcomes.filter(({ status }) => status === 'rejected').length
      assert.ok(failed > 0 && failed < 128, `${failed} of 128 reads failed`)
      assert.equal(failures.length, failed)
    }
    await rm(directory, { recursive: true })
  })
})

/** One byte in the middle of the largest pack. */
function spoilOnePack({ objects }: MemoryRepository['backend']): void {
  const packs = [...objects].filter(([key]) => key.startsWith('packs/'))
  const [, largest] = packs.reduce((best, next) => (next[1].length > best[1].length ? next : best))
  const middle = Math.floor(largest.length / 2)
  largest[middle] = (largest[middle] ?? 0) ^ 1
}
