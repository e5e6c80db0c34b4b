/**
 * Undo records come back from a file on disk: they are read, not trusted (S2), and running them twice does no harm (law 2).
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { leftovers } from '../../test/sim/leftovers.ts'
import { simulatedWorld, uuidOf } from '../../test/sim/sim-world.ts'
import type { UndoRecord } from '../base/cleanup.ts'
import { vmUndoHandlers } from './undo.ts'

const directory = await mkdtemp(join(tmpdir(), 'umbra-undo-'))
after(() => rm(directory, { recursive: true }))
const web01 = uuidOf('web01')

const neverThere = '00000000-0000-4000-8000-000000000000'

const base = { format: 'raw', storage: { file: '/images/web01-sda.raw' } } as const

/** One good record of each kind. */
const good: readonly UndoRecord[] = [
  { undo: 'thaw-guest', vm: web01, name: 'web01' },
  { undo: 'return-vm', vm: web01, name: 'web01', file: '/work/memory', power: 'running' },
  { undo: 'merge-overlay', vm: web01, target: 'sda', overlay: '/images/overlay', base },
  { undo: 'remove-file', path: '/work/never-there' },
  { undo: 'remove-files', paths: ['/work/never-there'] },
  { undo: 'remove-check-vm', vm: neverThere, name: 'umbra-check-0badcafe-web01', directories: [] },
  { undo: 'remove-check-network', network: 'umbra-check-0badcafe' },
  { undo: 'remove-check-directory', path: '/work/checks/0badcafe' },
  {
    undo: 'take-back-restore',
    vm: web01,
    places: [{ path: '/work/never-there', aside: null }],
    former: { configuration: '<domain/>', power: 'running', persistent: true },
  },
]

async function run(record: UndoRecord, world = simulatedWorld({ web01: {} })) {
  const handler = vmUndoHandlers(world.hypervisor, world.clock)[record.undo]
  assert.ok(handler !== undefined, record.undo)
  await handler(record)
  return world
}

describe('a record', () => {
  test('of something that never happened changes nothing, once or twice (law 2)', async () => {
    for (const record of good) {
      const world = await run(record)
      await run(record, world)
      assert.deepEqual(leftovers(world), [], record.undo)
    }
  })

  test('with a part missing or of another kind is refused, and nothing is done', async () => {
    for (const record of good) {
      for (const key of Object.keys(record)) {
        if (key === 'undo' || key === 'name' || key === 'former') continue
        for (const value of [undefined, 7, null]) {
          const world = simulatedWorld({ web01: {} })
          await assert.rejects(run({ ...record, [key]: value }, world), `${record.undo} with ${key} = ${value}`)
          assert.deepEqual(leftovers(world), [])
        }
      }
    }
  })

  test('may only name files by their whole path', async () => {
    for (const path of ['relative', '../up', '']) {
      await assert.rejects(run({ undo: 'remove-file', path }))
      await assert.rejects(run({ undo: 'remove-files', paths: [path] }))
      await assert.rejects(run({ undo: 'return-vm', vm: web01, file: path, power: 'off' }))
      await assert.rejects(run({ undo: 'merge-overlay', vm: web01, target: 'sda', overlay: path, base }))
    }
  })
})

test('of checks only what a check made is removed', async () => {
  const name = 'umbra-check-0badcafe-web01'
  await assert.rejects(run({ undo: 'remove-check-vm', vm: web01, name, directories: [] }), /is called web01/)
  for (const network of ['default', 'umbra-check-', 'umbra-unconnected'])
    await assert.rejects(run({ undo: 'remove-check-network', network }), network)
  for (const path of ['/', '/work/checks', '/work/checks/0badcafe/..', '/work/checks/other'])
    await assert.rejects(run({ undo: 'remove-check-directory', path }), path)
})

describe('a VM that is gone', () => {
  const gone = { ...good[2], vm: '00000000-0000-4000-8000-000000000000' } as UndoRecord

  test('keeps its overlay: it may hold all that was written since', async () => {
    await assert.rejects(run(gone), /the VM is gone; its overlay \/images\/overlay was left as it is/)
  })

  test('keeps its memory image', async () => {
    const file = join(directory, 'memory')
    await writeFile(file, 'memory')
    const record = { undo: 'return-vm', vm: '00000000-0000-4000-8000-000000000000', file, power: 'running' }
    await assert.rejects(run(record), /the VM is gone; its memory/)
    assert.ok(existsSync(file))
  })

  test('has nothing to thaw', async () => {
    await run({ undo: 'thaw-guest', vm: '00000000-0000-4000-8000-000000000000' })
  })
})

test('files are removed, one or several, also when some are gone', async () => {
  const paths = ['one', 'two', 'three'].map((name) => join(directory, name))
  for (const path of paths.slice(1)) await writeFile(path, '')
  await run({ undo: 'remove-files', paths })
  assert.deepEqual(paths.map(existsSync), [false, false, false])
})

test('a guest that can not be thawed is an error that says so', async () => {
  const world = simulatedWorld({ web01: { guest: { thaw: 'refused' } } })
  await assert.rejects(run({ undo: 'thaw-guest', vm: web01 }, world), /the guest could not be thawed: .*FITHAW failed/)
})
