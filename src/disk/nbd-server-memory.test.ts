/** The budget of memory: never more than there is, and nobody is passed by. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { openMemoryBudget } from './nbd-server-memory.ts'

describe('a budget of memory', () => {
  it('is never overdrawn, and served in turn', async () => {
    const budget = openMemoryBudget(100)
    const begun: string[] = []
    const holding = new Map<string, () => void>()
    const hold = (name: string, bytes: number) =>
      budget.hold(bytes, async () => {
        begun.push(name)
        await new Promise<void>((resolve) => holding.set(name, resolve))
      })
    const turn = () => new Promise((resolve) => setImmediate(resolve))
    const all = [hold('a', 60), hold('b', 60), hold('c', 10)]
    await turn()
    assert.deepEqual(begun, ['a'], 'c has to wait for b, which came first')
    holding.get('a')?.()
    await turn()
    assert.deepEqual(begun, ['a', 'b', 'c'])
    for (const name of ['b', 'c']) holding.get(name)?.()
    await Promise.all(all)
    await assert.rejects(
      budget.hold(100, () => Promise.reject(new Error('no'))),
      { message: 'no' },
    )
    await budget.hold(100, async () => undefined)
    await assert.rejects(
      budget.hold(101, async () => undefined),
      /bug/,
    )
  })
})
