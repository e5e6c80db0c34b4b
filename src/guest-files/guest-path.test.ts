import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { GuestFile } from './file-record.ts'
import { DeadEnd, goOn, nextLook, wayOf } from './follow-path.ts'
import { escapeName, namesOf, parsePlace, relativePath, toBytes } from './guest-path.ts'

describe('a place in a guest', () => {
  it('is a file system and a path, or a path alone', () => {
    const read = (text: string) => {
      const { fileSystem, names } = parsePlace(text)
      return [fileSystem, names.join('/')]
    }
    assert.deepEqual(read('vda1:/etc/fstab'), ['vda1', 'etc/fstab'])
    assert.deepEqual(read('vda1:'), ['vda1', ''])
    assert.deepEqual(read('vg0/root:/'), ['vg0/root', ''])
    assert.deepEqual(read('LABEL=a:b:/c:/d'), ['LABEL=a:b', 'c:/d'])
    assert.deepEqual(read('/etc//./hosts/'), [undefined, 'etc/hosts'])
    assert.deepEqual(read('/a:/b'), [undefined, 'a:/b'])
    for (const wrong of ['etc/fstab', 'vda1', '', ':/etc', ':', 'vda1:/a\0b', `/${'a'.repeat(5000)}`]) {
      assert.throws(() => parsePlace(wrong), { code: 'USAGE' }, wrong)
    }
  })

  it('is made of bytes, which can be written with escapes', () => {
    assert.deepEqual(parsePlace('vda1:/é').names, ['\xc3\xa9'])
    assert.deepEqual(parsePlace('vda1:/a\\nb\\377\\\\', true).names, ['a\nb\xff\\'])
    assert.deepEqual(parsePlace('vda1:/a\\nb').names, ['a\\nb'])
    for (const wrong of ['/\\x', '/\\400', '/\\'])
      assert.throws(() => parsePlace(wrong, true), { code: 'USAGE' }, wrong)
  })

  it('is printed on one line, and read back as it was', () => {
    const names = [
      'plain',
      'é\u{1f600}',
      'a\nb\t\r\\',
      '\x1b[31m',
      '\u202edlrow',
      '\u2028',
      '\u0085',
      '\\n',
      '\xff\xfe',
    ]
    const bytes = [...names.slice(0, -1).map((name) => toBytes(name, false)), '\xff\xfe\n', 'a\xc3\n']
    for (const one of bytes) {
      const shown = escapeName(one)
      assert.equal(toBytes(shown, true), one)
      assert.doesNotMatch(shown, /[\p{Cc}\p{Cf}\u2028]/u)
    }
    assert.equal(escapeName(toBytes('é', false)), 'é')
    assert.equal(escapeName('a\n\xff'), 'a\\n\\377')
  })
})

type Tree = Readonly<Record<string, 'directory' | 'file' | `-> ${string}`>>

/** Walks `path` through a tree, as the helper VM would tell of it. */
function walk(tree: Tree, path: string, follow = true): string {
  let way = wayOf(namesOf(path))
  for (;;) {
    const looked = new Map(
      nextLook(way).map((names) => {
        const at = names.join('/')
        const what = at === '' ? 'directory' : tree[at]
        const kind = what?.startsWith('->') ? 'symlink' : what
        return [at, kind && ({ path: at, kind, link: what?.slice(3) } as unknown as GuestFile)]
      }),
    )
    way = goOn(way, looked, follow)
    const file = looked.get(way.real.join('/'))
    if (way.left.length === 0 && file !== undefined) return relativePath(way.real)
  }
}

describe('the way of a path', () => {
  const tree: Tree = {
    etc: 'directory',
    'etc/hosts': 'file',
    'etc/absolute': '-> /etc/hosts',
    'etc/up': '-> ../../../../usr/lib',
    'etc/dangling': '-> nowhere',
    'etc/loop': '-> loop',
    'etc/self': '-> /etc/self/x',
    usr: 'directory',
    'usr/lib': 'directory',
    'usr/lib/x': 'file',
    'usr/back': '-> lib/../../etc',
    [Array.from({ length: 40 }, () => 'd').join('/')]: 'file',
    ...Object.fromEntries(
      Array.from({ length: 39 }, (_, i) => [Array.from({ length: i + 1 }, () => 'd').join('/'), 'directory' as const]),
    ),
  }

  it('follows symbolic links within the file system, and never above its root', () => {
    assert.equal(walk(tree, '/etc/absolute'), './etc/hosts')
    assert.equal(walk(tree, '/etc/up/x'), './usr/lib/x')
    assert.equal(walk(tree, '/usr/back/hosts'), './etc/hosts')
    assert.equal(walk(tree, '/../../etc/../etc/hosts'), './etc/hosts')
    assert.equal(walk(tree, '/'), '.')
    assert.equal(walk(tree, '/usr/..'), '.')
    assert.equal(walk(tree, `/${'d/'.repeat(40)}`), `./${Array.from({ length: 40 }, () => 'd').join('/')}`)
  })

  it('leaves the last symbolic link as it is when asked', () => {
    assert.equal(walk(tree, '/etc/absolute', false), './etc/absolute')
    assert.equal(walk(tree, '/usr/back/absolute', false), './etc/absolute')
  })

  it('ends where nothing is, where links have no end, and at files that are taken for directories', () => {
    for (const path of ['/nope', '/etc/dangling', '/etc/loop', '/etc/self', '/etc/hosts/x', '/etc/hosts/..']) {
      assert.throws(() => walk(tree, path), DeadEnd, path)
    }
  })
})
