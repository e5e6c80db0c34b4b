/**
 * Programs run to their end, within their limits, and leave nothing behind.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtempDisposable, open, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
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

  it('says it in one line', async () => {
    const run = runCommand(node, program('console.error("no\\n  disk\\n"); process.exitCode = 3'), { deadlineMs })
    await assert.rejects(run, { message: /failed: no; disk$/ })
  })

  it('hands over an environment and an open file', async () => {
    await using file = await open('/dev/null')
    const script = 'console.log(process.env.OURS, process.env.LC_ALL, require("fs").readlinkSync("/proc/self/fd/3"))'
    const options = { deadlineMs, environment: { OURS: 'yes' }, fd: file.fd, diesWithUs: true }
    assert.equal((await runCommand(node, program(script), options)).stdout, 'yes C /dev/null\n')
  })
})

/** Not when only its remains are there, which nobody may have taken away. */
async function lives(pid: string): Promise<boolean> {
  const stat = await readFile(`/proc/${pid.trim()}/stat`, 'utf8').catch(() => '')
  return stat !== '' && !/\) [ZX] /.test(stat)
}

describe('a program with a group of its own', { timeout: 30_000 }, () => {
  const options = { diesWithUs: true, hasOwnGroup: true }

  it('is killed with all that it started', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const file = join(directory.path, 'pid')
    const cancel = new AbortController()
    const script = 'sleep 1000 & echo $! > "$0.part"; mv "$0.part" "$0"; wait'
    const run = runCommand('sh', ['-c', script, file], { ...options, deadlineMs, signal: cancel.signal })
    run.catch(() => undefined)
    while (!existsSync(file)) await setTimeout(10) // the test's own limit ends it
    const background = await readFile(file, 'utf8')
    cancel.abort()
    await assert.rejects(run, { name: 'AbortError' })
    while (await lives(background)) await setTimeout(10)
  })

  it('may leave something in the background, which is not waited for', async () => {
    const { stderr } = await runCommand('sh', ['-c', 'sleep 1000 & echo $! >&2'], { ...options, deadlineMs })
    process.kill(Number(stderr), 'SIGKILL') // it is there
  })

  it('says what it said, though another holds its standard error open', async () => {
    const run = runCommand('sh', ['-c', 'echo no >&2; sleep 1000 & echo $! >&2; exit 3'], { ...options, deadlineMs })
    const error = await run.then(
      () => undefined,
      (reason: Error) => reason,
    )
    assert.match(error?.message ?? '', /failed: no; \d+$/)
    process.kill(Number(error?.message.split('; ').at(-1)), 'SIGKILL')
  })
})
