/**
 * Programs run to their end, within their limits, and leave nothing behind.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { runCommand } from './run-command.ts'

const deadlineMs = 10_000
const node = process.execPath
const program = (text: string) => ['-e', text]

describe('runCommand', () => {
  it('returns what the program writes, in the C locale', async () => {
    const script = 'console.log(process.env.LC_ALL); console.error("aside")'
    assert.deepEqual(await runCommand(node, program(script), { deadlineMs }), { stdout: 'C\n', stderr: 'aside\n' })
  })

  it('passes arguments as they are, and input', async () => {
    const script = 'process.stdin.pipe(process.stdout); console.log(process.argv[1])'
    const { stdout } = await runCommand(node, [...program(script), '; $(id) "*'], { deadlineMs, input: 'input' })
    assert.equal(stdout, '; $(id) "*\ninput')
  })

  it('does not mind a program that ignores its input', async () => {
    await runCommand(node, program(''), { deadlineMs, input: 'x'.repeat(1_000_000) })
  })

  it('says what the program said when it failed', async () => {
    const run = runCommand(node, program('console.error("no disk"); process.exitCode = 3'), { deadlineMs })
    await assert.rejects(run, { code: 'COMMAND_FAILED', message: /failed: no disk$/ })
  })

  it('says how a silent program ended', async () => {
    const run = (text: string) => runCommand(node, program(text), { deadlineMs })
    await assert.rejects(run('process.exitCode = 3'), { code: 'COMMAND_FAILED', message: /ended with 3$/ })
    await assert.rejects(run('process.kill(process.pid, "SIGKILL")'), /ended with SIGKILL$/)
  })

  it('says that there is no such program', async () => {
    await assert.rejects(runCommand('no-such-program', [], { deadlineMs }), {
      code: 'COMMAND_FAILED',
      message: /ENOENT/,
    })
  })

  it('kills a program that takes too long', async () => {
    const run = runCommand(node, program('setInterval(() => 0, 1000)'), { deadlineMs: 100 })
    await assert.rejects(run, { code: 'DEADLINE_EXCEEDED' })
  })

  it('kills a program that writes without end', { timeout: 20_000 }, async () => {
    const script = 'const w = () => process.stdout.write("x".repeat(1e6), w); w()'
    await assert.rejects(runCommand(node, program(script), { deadlineMs }), /wrote more than/)
  })

  it('keeps the end of a long complaint', async () => {
    const script = 'console.error("x".repeat(100000) + " the reason"); process.exitCode = 1'
    await assert.rejects(runCommand(node, program(script), { deadlineMs }), (error: Error) => {
      return error.message.endsWith('the reason') && error.message.length < 10_000
    })
  })

  it('kills the program and passes on the reason when its signal aborts', async () => {
    const run = runCommand(node, program('setInterval(() => 0, 1000)'), {
      deadlineMs,
      signal: AbortSignal.timeout(100),
    })
    await assert.rejects(run, { name: 'TimeoutError' })
    await assert.rejects(runCommand(node, [], { deadlineMs, signal: AbortSignal.abort() }), { name: 'AbortError' })
  })
})
