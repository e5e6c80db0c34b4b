import assert from 'node:assert/strict'
import { mkdtempDisposable, readdir, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { lastFailure, noteFailure } from './instant-failures.ts'
import { findRecord, forgetRecord, type InstantRecord, listRecords, readRecord, writeRecord } from './instant-record.ts'

const record = (name: string): InstantRecord => ({
  version: 1,
  ...{ name, uuid: '99999999-8888-4777-8666-555555555555', uri: 'qemu:///system', repository: '/backup' },
  ...{ point: 'p', component: 'c', token: '0123abcd', startedAt: 'now', stage: 'preparing' },
  disks: [{ target: 'sda', stream: 'disks/sda', overlay: '/images/sda.qcow2', sizeBytes: 512 }],
  files: [],
})
const directory = () => mkdtempDisposable(join(tmpdir(), 'umbra-test-'))

test('a record is found by the name of its VM, whatever that is, and stays in its directory', async () => {
  await using state = await directory()
  const names = ['web01', '../../etc/x', '..', 'ü b/ä', '.new']
  for (const name of names) await writeRecord(state.path, record(name))
  for (const name of names) assert.equal((await readRecord(state.path, name)).name, name)
  assert.deepEqual(await readdir(state.path), ['instant'])
  const { records, unreadable } = await listRecords(state.path)
  assert.deepEqual([records.length, unreadable], [names.length, []])
  for (const file of await readdir(join(state.path, 'instant'))) {
    assert.equal((await stat(join(state.path, 'instant', file))).mode & 0o777, 0o600)
  }
})

test('a record that is none is told, and hides no other', async () => {
  await using state = await directory()
  await writeRecord(state.path, record('web01'))
  const odd = join(state.path, 'instant', 'odd.json')
  await writeFile(odd, '{"version":1,"token":"../../x"}')
  const { records, unreadable } = await listRecords(state.path)
  assert.deepEqual([records.map(({ name }) => name), unreadable], [['web01'], [odd]])
  await assert.rejects(readRecord(state.path, 'odd'), { code: 'INSTANT_RECORD_INVALID' })
})

test('who asks for one that is not there is told which there are', async () => {
  await using state = await directory()
  await assert.rejects(readRecord(state.path, 'web01'), /there are: none/)
  await writeRecord(state.path, record('web01'))
  await assert.rejects(readRecord(state.path, 'web02'), /there are: web01/)
  await forgetRecord(state.path, record('web01'))
  assert.equal(await findRecord(state.path, 'web01'), undefined)
})

test('of reads that failed the last one of a disk is told; a line cut short and endless trying do no harm', async () => {
  await using state = await directory()
  const path = join(state.path, 'failures')
  assert.equal(await lastFailure(path, 'sda'), undefined)
  for (const [disk, offset] of [
    ['sda', 1],
    ['sda', 2],
    ['sdb', 3],
  ] as const) {
    await noteFailure(path, { disk, offset, length: 1, reason: 'damaged' })
  }
  assert.equal((await lastFailure(path, 'sda'))?.offset, 2)
  await writeFile(path, '{"disk":"sda","offs')
  assert.equal(await lastFailure(path, 'sda'), undefined)
  for (let i = 0; i < 50; i++) await noteFailure(path, { disk: 'sda', offset: i, length: 1, reason: 'x'.repeat(4000) })
  assert.ok((await stat(path)).size < 80_000)
})
