import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { BoundedLines, forPeople, RevertReply } from './helper-vm-replies.ts'

const broken = { code: 'HELPER_VM_FAILED', message: /broke the protocol/ }

describe('the answers of the helper VM', () => {
  it('end with the exit status, and name what was rolled back', () => {
    const reply = new RevertReply()
    assert.equal(reply.take('reverted\tdatavg/data\t12'), undefined)
    assert.deepEqual(reply.take('exit\t0'), { exit: 0, reverted: [{ where: 'datavg/data', chunks: 12 }] })
  })

  it('carry the reason of a failure, cleaned for people', () => {
    const reply = new RevertReply()
    reply.take('reason\tthe area \u001b[31m\u202eoverflowed')
    assert.deepEqual(reply.take('exit\t5'), { exit: 5, reason: 'the area  [31m overflowed' })
    assert.deepEqual(new RevertReply().take('exit\t1'), { exit: 1, reason: 'umbra-revert ended with 1' })
  })

  it('are refused when they are anything else', () => {
    const lies = [
      ...['', 'exit', 'exit\t', 'exit\t-1', 'exit\t0\t0', 'exit\t9999', 'hello', 'fsid\ta\tb', 'reverted\t\t1'],
      ...['reverted\ta/b', 'reverted\ta/b\tmany', 'reverted\ta\u0007/b\t1', 'reverted\ta/b\t1\t2'],
    ]
    for (const line of lies) assert.throws(() => new RevertReply().take(line), broken, JSON.stringify(line))
  })

  it('are bounded in the number and the length of their lines', () => {
    const reply = new RevertReply()
    const endless = () => {
      for (let i = 0; i < 5000; i++) reply.take(`reverted\tgroup/volume${i}\t1`)
    }
    assert.throws(endless, broken)
    const lines = new BoundedLines()
    const flood = () => {
      for (let i = 0; i < 100; i++) lines.take(Buffer.alloc(1000, 'a'))
    }
    assert.throws(flood, broken)
    assert.equal(forPeople('a'.repeat(5000)).length, 1000)
  })

  it('may come in any pieces', () => {
    const lines = new BoundedLines()
    const text = Buffer.from('ready\nexit\t0\nrest é\n')
    const taken = [...text].flatMap((byte) => lines.take(Buffer.from([byte])))
    assert.deepEqual(taken, ['ready', 'exit\t0', 'rest é'])
  })
})
