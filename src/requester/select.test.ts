/**
 * Which components a backup takes: by name, all, all but some; what is refused is refused at once and by name (V9).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { ComponentMetadata, WriterMetadata } from '../vss/components.ts'
import { type BackupSelection, select } from './backup.ts'

const uuids = ['aaaaaaaa-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000002'] as const

function component(label: string, name: string, obstacles: readonly string[] = []): ComponentMetadata {
  return {
    writerId: 'writer',
    type: 'filegroup',
    logicalPath: '',
    name,
    label,
    caption: `Online\\${label}`,
    selectable: true,
    selectableForRestore: true,
    notifyOnBackupComplete: false,
    flags: 0,
    files: [],
    volumes: [],
    instant: name,
    plan: {},
    obstacles,
  }
}

const metadata = (...components: ComponentMetadata[]): WriterMetadata[] =>
  components.map((one) => ({ writerId: 'writer', instanceId: 'instance', name: 'Writer', components: [one] }))

const host = metadata(component('web01', uuids[0]), component('db01', uuids[1]))

const names = (asked: Partial<BackupSelection>, from = host) =>
  select(from, { names: [], all: false, except: [], ...asked }).map(({ label }) => label)

describe('the selection', () => {
  test('is by name or UUID, each once, in the order asked for', () => {
    assert.deepEqual(names({ names: ['db01', 'web01', 'db01'] }), ['db01', 'web01'])
    assert.deepEqual(names({ names: [uuids[0], 'web01', uuids[0].toUpperCase()] }), ['web01'])
  })

  test('is everything, or everything but', () => {
    assert.deepEqual(names({ all: true }), ['web01', 'db01'])
    assert.deepEqual(names({ all: true, except: ['web01'] }), ['db01'])
  })

  test('names all unknown ones at once, those of --except too, and what there is', () => {
    assert.throws(() => names({ names: ['web01', 'nope'], except: ['neither'] }), {
      code: 'VM_NOT_FOUND',
      message: 'there is no VM nope, neither; there are: web01, db01',
    })
    assert.throws(() => names({ names: ['web01'] }, []), { message: 'there is no VM web01; there are: none' })
  })

  test('of nothing is wrong usage', () => {
    assert.throws(() => names({}), { code: 'USAGE' })
    assert.throws(() => names({ all: true, except: ['web01', 'db01'] }), { code: 'USAGE' })
  })

  test('of one that can not be backed up is refused whole, with every reason', () => {
    const broken = metadata(
      component('web01', uuids[0]),
      component('db01', uuids[1], ['occupied by backup', 'it is saved']),
    )
    assert.throws(() => names({ all: true }, broken), {
      code: 'VSS_WRITER_VETO',
      message: 'no VM was backed up: db01: occupied by backup; it is saved',
    })
    assert.deepEqual(names({ all: true, except: ['db01'] }, broken), ['web01'])
  })
})
