import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import { isAtWork, ownProcessMark, parseProcessMark, processMarkText, processState } from './process-mark.ts'

test('a process mark survives its text, and says who lives', async () => {
  const own = await ownProcessMark()
  assert.deepEqual(parseProcessMark(`${processMarkText(own)}-1-x`), own)
  assert.equal(parseProcessMark('something-else'), undefined)
  assert.equal(await processState(own), 'alive')
  assert.equal(await processState({ ...own, host: 'ffffffff' }), 'elsewhere')
  assert.equal(await processState({ ...own, startTicks: own.startTicks + 1 }), 'dead')
})

test('only a mark of this host, this boot and this very process is at work', async () => {
  const own = await ownProcessMark()
  const child = spawn('true')
  await once(child, 'exit')
  const others = [
    { ...own, pid: child.pid ?? 0 },
    { ...own, startTicks: own.startTicks + 1 },
    { ...own, boot: '00000000' },
    { ...own, host: '00000000' },
  ]
  assert.ok(await isAtWork(processMarkText(own)))
  for (const mark of others) assert.equal(await isAtWork(processMarkText(mark)), false)
  for (const text of ['', `${process.pid}/1`, 'x']) assert.equal(await isAtWork(text), false)
})
