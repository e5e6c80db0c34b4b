import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { NotUnderstood, readAreas, readable, readDescription, readReverted, unescaped } from './umbra-guest-output.ts'

const line = (...fields: readonly string[]) => `${fields.join('\t')}\n`

describe('what umbra-guest says', () => {
  it('is read line by line, with escapes undone', () => {
    const said = readDescription(
      line('version', '1') +
        line('tool', 'lvm') +
        line('fs', '/srv/with\\040space', 'ext4', 'lvm', 'datavg/data', '134217728', '') +
        line('fs', '/boot', 'vfat', 'other', '/dev/sda1', '0', 'no snapshot of vfat') +
        line('pv', 'datavg', '/dev/sdb') +
        line('md', '/dev/md0') +
        line('writer', '10-postgresql'),
    )
    assert.deepEqual(said, {
      tools: ['lvm'],
      volumes: [
        {
          mountPoint: '/srv/with space',
          type: 'ext4',
          kind: 'lvm',
          where: 'datavg/data',
          roomBytes: 134217728,
          obstacle: '',
        },
        {
          mountPoint: '/boot',
          type: 'vfat',
          kind: 'other',
          where: '/dev/sda1',
          roomBytes: 0,
          obstacle: 'no snapshot of vfat',
        },
      ],
      physicalVolumes: [{ group: 'datavg', device: '/dev/sdb' }],
      arrays: ['/dev/md0'],
      writers: ['10-postgresql'],
    })
    assert.equal(unescaped('a\\303\\244\\134040'), 'aä\\040')
  })

  it('is refused when the protocol does not know it', () => {
    const begin = line('version', '1')
    const strange = [
      '',
      line('version', '2'),
      `${begin}tool\tlvm`,
      begin + line('tool'),
      begin + line('surprise', 'x'),
      begin + line('constructor', 'x'),
      begin + line('fs', '/', 'ext4', 'lvm', 'a/b', '1'),
      begin + line('fs', '/', 'ext4', 'zfs', 'a/b', '1', ''),
      begin + line('fs', 'etc', 'ext4', 'lvm', 'a/b', '1', ''),
      begin + line('fs', '/', 'ext4', 'lvm', 'a/b', '-1', ''),
      begin + line('fs', '/', 'ext4', 'lvm', 'a/b', '9999999999999999', ''),
      begin + line('pv', 'a', `/dev/${'x'.repeat(5000)}`),
      begin + line('writer', 'a').repeat(5000),
    ]
    for (const text of strange) assert.throws(() => readDescription(text), NotUnderstood, text.slice(0, 60))
  })

  it('may be anything at all: it is understood or refused', () => {
    const word = fc.oneof(fc.constantFrom('version', '1', 'fs', 'pv', 'area', 'fsid', '\\0', '\\777'), fc.string())
    const text = fc.array(fc.array(word).map((words) => words.join('\t'))).map((lines) => `${lines.join('\n')}\n`)
    const reads = [readDescription, readAreas, (said: string) => readReverted(said, ['umbra-1'])]
    fc.assert(
      fc.property(text, (said) => {
        for (const read of reads) {
          for (const each of [said, `version\t1\n${said}`]) {
            try {
              read(each)
            } catch (error) {
              assert.ok(error instanceof NotUnderstood, String(error))
            }
          }
        }
      }),
    )
  })

  it('names only the copies it was asked for, each once', () => {
    const fsid = '01234567-89ab-cdef-0123-456789abcdef'
    const said = line('reverted', 'datavg/data', '12') + line('fsid', 'umbra-1', fsid)
    assert.deepEqual(readReverted(said, ['umbra-1', 'umbra-2']), [{ serial: 'umbra-1', fsid }])
    assert.throws(() => readReverted(said, ['umbra-2']), NotUnderstood)
    assert.throws(() => readReverted(said + line('fsid', 'umbra-1', fsid), ['umbra-1']), NotUnderstood)
    assert.throws(() => readReverted(line('fsid', 'umbra-1', '../../etc'), ['umbra-1']), NotUnderstood)
  })

  it('is harmless on a terminal', () => {
    assert.equal(readable('\u001b[2Jweb\u202e\r'), '\ufffd[2Jweb\ufffd\ufffd')
    assert.equal(readable('x'.repeat(1000)).length, 300)
    assert.deepEqual(readAreas(line('area', 'a/\\033b', '1', '2')), [
      { where: 'a/\ufffdb', usedBytes: 1, totalBytes: 2 },
    ])
  })
})
