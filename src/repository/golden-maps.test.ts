/**
 * Maps of format 1 are written as they always were: what is unchanged since an old program wrote it has the same ids today,
 * so that segments and roots are not stored again.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { goldenDisk } from '../../test/golden/repository-1.make.ts'
import { openMemoryRepository } from '../../test/sim/memory-repository.ts'
import { objectKeys } from './format.ts'
import { openRepository, type StreamBase } from './repository.ts'

const chunkSizeBytes = 64 * 1024
const disk = 'vms/7e1b0c9e-1111-4222-8333-444455556666/disks/sda'

interface SealedManifest {
  readonly features: readonly string[]
  readonly maps: readonly { readonly name: string; readonly map: unknown }[]
}

function manifestIn(text: string): SealedManifest {
  const [header = '', content = ''] = text.split('\n')
  const streams: { name: string; map: unknown }[] = JSON.parse(content).streams
  return { features: JSON.parse(header).features, maps: streams.map(({ name, map }) => ({ name, map })) }
}

test('the maps of the golden repository are what is written today, whole or upon an earlier point', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-golden-'))
  try {
    execFileSync('tar', ['-C', folder, '-xzf', path.join(import.meta.dirname, '../../test/golden/repository-1.tar.gz')])
    await using golden = await openRepository(folder)
    await using place = await openMemoryRepository(chunkSizeBytes)
    let base: StreamBase | undefined
    for (const [index, { id }] of (await golden.listPoints()).entries()) {
      const wanted = manifestIn(await readFile(path.join(folder, objectKeys.point(id)), 'utf8'))
      await using draft = await place.repository.beginPoint()
      await using stream = await draft.openStream(disk, goldenDisk(1).length, base)
      for await (const chunk of stream.unusableChunks()) assert.fail(`chunk ${chunk} is not usable`)
      const data = goldenDisk(index === 0 ? 1 : 2)
      for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
        await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
      }
      await stream.finish()
      const point = await draft.commit({})
      base = { point, stream: disk }
      const found = manifestIn(String(place.backend.objects.get(objectKeys.point(point.id))))
      assert.deepEqual(found.features, wanted.features)
      assert.deepEqual(
        found.maps,
        wanted.maps.filter(({ name }) => name === disk),
      )
    }
  } finally {
    await rm(folder, { recursive: true })
  }
})
