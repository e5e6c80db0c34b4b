/**
 * Asking on a terminal: what is typed is never written, and every way to end is told apart.
 */
import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import type { Configuration } from '../config.ts'
import { unlockOf } from './passphrase.ts'
import { askNewPassphrase, askPassphrase, canAsk } from './passphrase-prompt.ts'

/** A terminal whose user types `lines`, one for each question. */
function terminal(...lines: string[]) {
  const modes: boolean[] = []
  const input = Object.assign(new PassThrough(), {
    isTTY: true,
    setRawMode(mode: boolean) {
      modes.push(mode)
      const line = mode ? lines.shift() : undefined
      if (line !== undefined) input.write(line)
    },
  })
  const output = Object.assign(new PassThrough(), { isTTY: true })
  return { input, output, modes, shown: () => String(output.read() ?? '') }
}

test('what is typed is answered, corrected as it was, and not shown', async () => {
  for (const [typed, meant] of [
    ['open sesame\r', 'open sesame'],
    ['Zw\u00f6lf \u{1F5DD}\n', 'Zw\u00f6lf \u{1F5DD}'],
    ['opem\u007fn\r', 'open'],
    ['\u{1F5DD}\u007fopen\r', 'open'],
    ['wrong\u0015open\r', 'open'],
    ['open\u0004', 'open'],
    ['\r', ''],
  ] as const) {
    const one = terminal(typed)
    assert.equal(await askPassphrase('passphrase', one), meant)
    assert.equal(one.shown(), 'passphrase: \n')
    assert.deepEqual(one.modes, [true, false])
  }
})

test('^C cancels, a terminal that is closed is an error, and the echo comes back both times', async () => {
  const cancelled = terminal('op\u0003')
  await assert.rejects(askPassphrase('passphrase', cancelled), { name: 'AbortError' })
  assert.deepEqual(cancelled.modes, [true, false])
  const closed = terminal()
  closed.input.end('half')
  await assert.rejects(askPassphrase('passphrase', closed), { code: 'KEY_INVALID' })
  assert.deepEqual(closed.modes, [true, false])
})

test('a new passphrase is typed twice', async () => {
  assert.equal(await askNewPassphrase(terminal('open\r', 'open\r')), 'open')
  await assert.rejects(askNewPassphrase(terminal('open\r', 'opem\r')), (error) => {
    assert.ok(!String(error).includes('open'))
    return (error as { code?: string }).code === 'KEY_INVALID'
  })
})

test('whoever opens a repository again is not asked again', async () => {
  const one = terminal('open\r', 'opem\r')
  const { passphrase } = unlockOf({ stateDirectory: '/', limits: {} } as Configuration, { terminal: one })
  assert.deepEqual([await passphrase?.(), await passphrase?.()], ['open', 'open'])
  assert.equal(one.shown(), 'passphrase of the repository: \n')
})

test('nobody is asked where nobody is', () => {
  assert.ok(canAsk(terminal()))
  const one = terminal()
  assert.ok(!canAsk({ ...one, output: new PassThrough() }))
  assert.ok(!canAsk({ ...one, input: new PassThrough() }))
})
