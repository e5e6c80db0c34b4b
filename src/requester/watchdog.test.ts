/**
 * The watchdog's protocol, and its process: ready before anything is frozen, overdue windows thawed, a farewell told from a
 * pipe that broke (S1).
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { PassThrough } from 'node:stream'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { systemClock } from '../base/clock.ts'
import { startProcess } from '../base/own-programs.ts'
import { followSession, linesOf, startWatchdog } from './watchdog.ts'
import { startEarly, takeWatchdogProcess } from './watchdog-process.ts'

function following() {
  const clock = new ManualClock()
  const pipe = new PassThrough()
  const overdue: number[] = []
  const end = followSession(linesOf(pipe), clock, async () => void overdue.push(clock.monotonicMs()))
  return { clock, pipe, overdue, end }
}

describe('the watchdog', () => {
  test('tells a farewell from a pipe that broke', async () => {
    for (const [text, end] of [
      ['end\n', 'farewell'],
      ['hold 60000\nrelease\nend\n', 'farewell'],
      ['', 'broken off'],
      ['hold 60000\n', 'broken off'],
      ['en', 'broken off'],
      ['end', 'broken off'],
    ] as const) {
      const { pipe, end: ended } = following()
      pipe.end(text)
      assert.equal(await ended, end, JSON.stringify(text))
    }
  })

  test('acts when a window is overdue, and not when it was closed in time', async () => {
    const { clock, pipe, overdue, end } = following()
    pipe.write('hold 62000\n')
    await clock.advance(61_999)
    assert.deepEqual(overdue, [])
    await clock.advance(1)
    assert.deepEqual(overdue, [62_000])
    pipe.write('release\nhold 10')
    pipe.write('00\n') // lines come as the pipe cuts them
    await clock.advance(500)
    pipe.write('release\n')
    await clock.advance(100_000)
    assert.deepEqual(overdue, [62_000])
    pipe.end('end\n')
    assert.equal(await end, 'farewell')
    assert.equal(clock.pending, 0)
  })

  test('goes on after an overdue thaw has failed', async () => {
    const clock = new ManualClock()
    const pipe = new PassThrough()
    const end = followSession(linesOf(pipe), clock, () => Promise.reject(new Error('the agent is silent')))
    pipe.write('hold 1000\n')
    await clock.advance(2000)
    pipe.end()
    assert.equal(await end, 'broken off')
  })

  test('takes no harm from lines it does not know', async () => {
    const { clock, pipe, overdue, end } = following()
    pipe.write('hold\nhold -5\nhold 1e3\nHOLD 5\n\n')
    await clock.advance(100_000)
    assert.deepEqual(overdue, [])
    pipe.end('end\n')
    assert.equal(await end, 'farewell')
  })
})

describe('the process of the watchdog', () => {
  /** Says that it is ready, and then what it hears. */
  const script = (body: string) => [process.execPath, '--input-type=module', '-e', body]
  const by = (command: readonly string[]) => ({ process: startProcess(command), journal: '/a/journal' })
  const follows = script(`
    import { followSession, linesOf } from '${new URL('./watchdog.ts', import.meta.url).href}'
    import { systemClock } from '${new URL('../base/clock.ts', import.meta.url).href}'
    const lines = linesOf(process.stdin)
    if ((await lines.next()).value === '/a/journal') process.stdout.write('ready\\n')
    process.exitCode = (await followSession(lines, systemClock, async () => undefined)) === 'farewell' ? 0 : 9
  `)

  test('is started, is ready, and ends with a farewell', async () => {
    const watchdog = await startWatchdog(by(follows))
    assert.ok(isAlive(watchdog.pid))
    watchdog.hold(60_000)
    watchdog.release()
    await watchdog[Symbol.asyncDispose]()
    assert.equal(isAlive(watchdog.pid), false)
    await watchdog[Symbol.asyncDispose]() // once more does no harm
  })

  test('that can not be started, or ends at once, is an error before anything is frozen', async () => {
    await assert.rejects(startWatchdog(by(['/no/such/program'])), /ENOENT/)
    await assert.rejects(startWatchdog(by(script('process.exit(3)'))), { code: 'SESSION_INTERRUPTED' })
  })

  test('that was started early and killed before its session began is replaced', async () => {
    const first = startEarly()
    assert.equal(takeWatchdogProcess(), first)
    const early = startEarly().child
    early.kill('SIGKILL')
    await once(early, 'exit')
    const second = takeWatchdogProcess()
    assert.ok(second.child.pid !== early.pid && second.child.signalCode === null)
    for (const { child } of [first, second]) {
      child.stdin?.end() // nobody tells it of a session
      await once(child, 'exit')
      assert.equal(child.exitCode, 0)
    }
  })

  test('that never gets ready is given up and killed', async () => {
    const clock = new ManualClock()
    const starting = startWatchdog({
      ...by(script('setInterval(() => undefined, 1000)')),
      clock,
      startDeadlineMs: 500,
    })
    starting.catch(() => undefined)
    await clock.advance(500)
    await assert.rejects(starting, { code: 'DEADLINE_EXCEEDED' })
  })

  test('that was killed meanwhile does not keep the session from its end', async () => {
    const watchdog = await startWatchdog(by(follows))
    process.kill(watchdog.pid, 'SIGKILL')
    while (isAlive(watchdog.pid)) await systemClock.sleep(5)
    watchdog.hold(60_000)
    watchdog.release()
    await watchdog[Symbol.asyncDispose]()
  })

  test('hears the pipe break when its session is killed', async () => {
    const session = script(`
      import { startWatchdog } from '${new URL('./watchdog.ts', import.meta.url).href}'
      import { startProcess } from '${new URL('../base/own-programs.ts', import.meta.url).href}'
      const process_ = startProcess(${JSON.stringify(follows)})
      const watchdog = await startWatchdog({ process: process_, journal: '/a/journal' })
      process.stdout.write(String(watchdog.pid))
      setInterval(() => undefined, 1000)
    `)
    const child = spawn(session[0] ?? '', session.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
    const pid = Number(String((await once(child.stdout, 'data'))[0]))
    assert.ok(isAlive(pid))
    child.kill('SIGKILL')
    for (let waits = 0; isAlive(pid) && waits < 500; waits++) await systemClock.sleep(10)
    assert.equal(isAlive(pid), false, 'the watchdog went on for ever')
  })
})

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}
