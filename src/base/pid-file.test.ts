import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { endProcess, livingProcess } from './pid-file.ts'

test('a process counts when its command line names its file, and is gone when it has ended', async () => {
  await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
  const file = join(directory.path, 'x.pid')
  const child = spawn(process.execPath, ['-e', 'console.log(1); setInterval(() => {}, 1000)', file])
  const ended = once(child, 'exit')
  await once(child.stdout, 'data')
  assert.equal(await livingProcess(file), undefined)
  await writeFile(file, `${child.pid}\n`)
  assert.equal(await livingProcess(file), child.pid)
  await endProcess(file)
  await ended
  assert.equal(await livingProcess(file), undefined)
  assert.equal(existsSync(file), false)
  await endProcess(file)
})

test('one that does not listen is ended all the same', async () => {
  await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
  const file = join(directory.path, 'x.pid')
  const deaf = 'process.on("SIGTERM", () => {}); console.log(1); setInterval(() => {}, 1000)'
  const child = spawn(process.execPath, ['-e', deaf, file])
  const ended = once(child, 'exit')
  await once(child.stdout, 'data')
  await writeFile(file, `${child.pid}`)
  await endProcess(file, 200)
  assert.equal((await ended)[1], 'SIGKILL')
})

test('the process of somebody else, who has the number now, is left alone', async () => {
  await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
  const file = join(directory.path, 'x.pid')
  for (const text of [`${process.pid}`, '1', '0', '-1', 'x', '']) {
    await writeFile(file, text)
    await endProcess(file)
    assert.equal(existsSync(file), false)
  }
})
