/**
 * Locks of the host: one holder, told at once, and released by the kernel however the holder ends.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, test } from 'node:test'
import { tryLock } from './host-lock.ts'

const scope = `/test/${process.pid}`

describe('a lock', () => {
  test('has one holder; the second is told at once, and may have it afterwards', async () => {
    const first = await tryLock(scope, 'a')
    assert.ok(first !== undefined)
    assert.equal(await tryLock(scope, 'a'), undefined)
    await first[Symbol.asyncDispose]()
    const second = await tryLock(scope, 'a')
    assert.ok(second !== undefined)
    await second[Symbol.asyncDispose]()
  })

  test('is for one name in one scope, whatever the names are', async () => {
    const names = ['a', 'A', 'a '.repeat(500), '\0', '', 'ü']
    const locks = await Promise.all(names.map((name) => tryLock(scope, name)))
    locks.push(await tryLock(`${scope}/other`, 'a'))
    assert.ok(locks.every((lock) => lock !== undefined))
    await Promise.all(locks.map((lock) => lock?.[Symbol.asyncDispose]()))
  })

  test('of several that ask at once goes to one', async () => {
    const locks = await Promise.all(Array.from({ length: 8 }, () => tryLock(scope, 'b')))
    const held = locks.filter((lock) => lock !== undefined)
    assert.equal(held.length, 1)
    await held[0]?.[Symbol.asyncDispose]()
  })

  test('does not outlive its process, not even after kill -9', async () => {
    const file = new URL('./host-lock.ts', import.meta.url).href
    const script = `import { tryLock } from '${file}'
      if ((await tryLock('${scope}', 'c')) !== undefined) process.stdout.write('held')
      setInterval(() => undefined, 1000)`
    const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    assert.equal(String((await once(child.stdout, 'data'))[0]), 'held')
    assert.equal(await tryLock(scope, 'c'), undefined)
    const ended = once(child, 'exit')
    child.kill('SIGKILL')
    await ended
    const mine = await tryLock(scope, 'c')
    assert.ok(mine !== undefined)
    await mine[Symbol.asyncDispose]()
  })
})
