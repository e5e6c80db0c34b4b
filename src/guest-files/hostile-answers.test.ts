/**
 * What the helper VM says may have been made up by a guest: everything that it should not say is refused, and nothing grows without
 * bounds.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { readRecords } from './file-record.ts'
import { chooseFileSystems, parseFileSystems } from './file-systems.ts'
import { GuestFiles } from './guest-files.ts'
import { parsePlace } from './guest-path.ts'
import type { Answer, AnswerEnd, GuestReader } from './guest-reader.ts'
import { sequentialSource } from './sequential-source.ts'

const refused = { code: 'GUEST_FILES_REFUSED' }
const fine: AnswerEnd = { exit: 0, notes: [] }

async function* answering(parts: Iterable<Uint8Array | string>, end = fine): Answer {
  for (const part of parts) yield Buffer.from(part as string)
  return end
}

async function recordsOf(text: string, size = text.length) {
  const bytes = Buffer.from(text, 'latin1')
  const parts: Buffer[] = []
  for (let at = 0; at < bytes.length; at += size) parts.push(bytes.subarray(at, at + size))
  const found = []
  for await (const one of readRecords(answering(parts))) found.push(one)
  return found
}

const facts = 'f 4640 12 34 2 11 8 1795350421.8864978370'

describe('records of files', () => {
  it('may come in any pieces, with signs of life between', async () => {
    const text = `....\0${facts}\0./a\nb\xff\0\0l 777 0 0 1 4 0 -1.5\0.\0../x\0..\0`
    for (const size of [1, 7, 1000]) {
      const [sign, file, link, last] = await recordsOf(text, size)
      assert.deepEqual([sign, last], [undefined, undefined])
      assert.deepEqual(file, {
        ...{ path: 'a\nb\xff', kind: 'file', mode: 0o4640, uid: 12, gid: 34, links: 2, sizeBytes: 11 },
        ...{ allocatedBytes: 4096, mtimeMs: 1795350421886 },
      })
      assert.deepEqual([link?.path, link?.kind, link?.link], ['', 'symlink', '../x'])
    }
  })

  it('are refused when they are anything else', async () => {
    const lies = [
      ...['./a/../b', '../a', '/a', 'a', './', './a//b', '', './..'].map((path) => `${facts}\0${path}\0\0`),
      ...[
        'x',
        facts.replace('f', 'z'),
        facts.replace('11', '99999999999999999'),
        facts.replace('4640', '9'),
        `${facts} 1`,
      ].map((one) => `${one}\0./a\0\0`),
      ...[`${facts}\0./a`, `${facts}\0./a\0`, 'f'],
    ]
    for (const lie of lies) await assert.rejects(recordsOf(lie), refused, JSON.stringify(lie))
  })

  it('are bounded', async () => {
    const flood = function* () {
      for (;;) yield Buffer.alloc(16_384, 0x61)
    }
    await assert.rejects(async () => {
      for await (const _ of readRecords(answering(flood())));
    }, refused)
  })
})

describe('the list of file systems', () => {
  const list =
    'device\tvda10\t10\nID_FS_TYPE=ext4\nID_FS_LABEL_ENC=a\\x20b\\x0a\nID_FS_UUID_ENC=AB-1\nID_FS_USAGE=filesystem\n' +
    'device\tvg0/root\t7\nID_FS_TYPE=swap\ndevice\tvda2\t5\n'

  it('is read with its labels, and found by name, label and UUID', () => {
    const all = parseFileSystems(list)
    assert.deepEqual(all, [
      { index: 3, name: 'vda2', sizeBytes: 5, isReadable: false },
      { index: 1, name: 'vda10', sizeBytes: 10, type: 'ext4', label: 'a b\n', uuid: 'AB-1', isReadable: true },
      { index: 2, name: 'vg0/root', sizeBytes: 7, type: 'swap', isReadable: false },
    ])
    const chosen = (place: string) => chooseFileSystems(all, parsePlace(place)).map(({ index }) => index)
    assert.deepEqual(['vda2:', 'vg0/root:/x', 'UUID=ab-1:/', 'LABEL=a b\n:/', '/etc'].map(chosen), [
      [3],
      [2],
      [1],
      [1],
      [1],
    ])
    assert.throws(() => chosen('sda:/'), { code: 'GUEST_FILE_SYSTEM_NOT_FOUND' })
    const twins = parseFileSystems('device\ta\t1\nID_FS_UUID_ENC=x\ndevice\tb\t1\nID_FS_UUID_ENC=x\n')
    assert.throws(() => chooseFileSystems(twins, parsePlace('UUID=x:/')), { code: 'GUEST_PATH_AMBIGUOUS' })
  })

  it('is refused when it is anything else', () => {
    const lies = [
      ...['hello', 'device\ta b\t1', 'device\t\t1', 'device\ta\tx', 'ID_FS_OTHER=1', `device\t${'a'.repeat(400)}\t1`],
      ...[`ID_FS_TYPE=${'a'.repeat(2000)}`, Array.from({ length: 3000 }, (_, i) => `device\td${i}\t1`).join('\n')],
    ]
    for (const lie of lies) assert.throws(() => parseFileSystems(lie), refused, lie.slice(0, 50))
  })
})

/** Answers each verb with what a function makes of the words. */
function readerOf(answers: Readonly<Record<string, (words: readonly string[]) => Answer>>): GuestReader {
  return {
    ask([verb = '', ...words]) {
      const answer = answers[verb]
      assert.ok(answer !== undefined, `nobody asks for ${verb}`)
      return answer(words)
    },
  }
}

const one = () => answering(['device\tvda1\t10\nID_FS_TYPE=ext4\n'])
const root = 'd 755 0 0 2 0 0 1\0.\0\0'
const filesOf = (answers: Parameters<typeof readerOf>[0]) => {
  const notes: string[] = []
  return {
    notes,
    files: new GuestFiles(readerOf({ list: one, ...answers }), { disks: 1, onNote: (note) => notes.push(note) }),
  }
}

describe('the files of a guest', () => {
  it('are what was asked for, and nothing else', async () => {
    const { files } = filesOf({ stat: () => answering([`${root}${facts}\0./other\0\0`]) })
    await assert.rejects(files.find(parsePlace('vda1:/a'), { follow: true }), refused)
  })

  it('have as many bytes as their size tells', async () => {
    const stat = () => answering([`${root}${facts}\0./a\0\0`])
    const read = async (content: string, end?: AnswerEnd) => {
      const { files } = filesOf({ stat, cat: () => answering([content], end) })
      const found = await files.find(parsePlace('vda1:/a'), { follow: true })
      for await (const _ of files.content(found));
    }
    await read('hello world')
    await assert.rejects(read('hello world!'), refused)
    await assert.rejects(read('hello'), { code: 'GUEST_FILES_INCOMPLETE' })
    await assert.rejects(read('hello world', { exit: 1, notes: ['Input/output error'] }), /Input\/output error/)
  })

  it('may lie on a file system that can not be read: then it says why', async () => {
    const { files } = filesOf({ stat: () => answering([], { exit: 3, notes: ['it can not be mounted: bad magic'] }) })
    await assert.rejects(files.find(parsePlace('vda1:/a'), { follow: true }), {
      code: 'GUEST_FILE_SYSTEM_UNREADABLE',
      message: /vda1.*bad magic/,
    })
  })

  it('come with notes, and a directory that is not whole is counted as a problem', async () => {
    const end = { exit: 1, notes: ['ls: damaged'] }
    const { files, notes } = filesOf({ stat: () => answering([root]), ls: () => answering([`${facts}\0./a\0\0`], end) })
    const found = await files.find(parsePlace('vda1:/'), { follow: true })
    assert.deepEqual(
      (await files.list(found, 10))?.map(({ path }) => path),
      ['a'],
    )
    assert.deepEqual([notes, files.problems], [['ls: damaged'], 1])
    assert.equal(await files.list(found, 0), undefined)
  })
})

describe('a stream that is read as a disk', () => {
  it('gives the bytes in any pieces, then zeros, and wants an end', async () => {
    const bytes = Buffer.concat([randomBytes(5000), Buffer.alloc(2000)])
    const source = sequentialSource(answering([bytes.subarray(0, 3), bytes.subarray(3, 4097), bytes.subarray(4097)]))
    const read = Buffer.alloc(6000)
    await Promise.all([0, 1000, 2000].map((at) => source.read(at, read.subarray(at, at + 1000))))
    await source.read(3000, read.subarray(3000))
    assert.ok(read.equals(bytes.subarray(0, 6000)))
    assert.deepEqual(await source.finish(7000), fine)
    const cut = sequentialSource(answering([randomBytes(3000)], { exit: 137, notes: ['killed'] }))
    await cut.read(0, Buffer.alloc(4000, 1))
    await assert.rejects(cut.finish(3001), /cut off: killed/)
    const flood = function* () {
      for (;;) yield Buffer.alloc(1024 * 1024)
    }
    await assert.rejects(sequentialSource(answering(flood())).finish(1), refused)
  })
})
