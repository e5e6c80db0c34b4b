/**
 * Boot checks of real recovery points through the real program: a guest that comes up and is reached over the isolated
 * network, one whose disks hold nothing, and a check that is killed in the middle. The VM that was backed up is never
 * touched, and nothing is left on the host.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { recover } from '../../src/compose.ts'
import type { CheckResult } from '../../src/requester/check.ts'
import { runUmbra, umbraProgram } from '../umbra-process.ts'
import { beginStage, defineVm, eventually, type Stage, type StageVm, skipLive, virsh, vmDirectory } from './stage.ts'
import { backUp, hashOf, nothingIsLeft, stateOf } from './stage-session.ts'

let stage: Stage
let web: StageVm
let empty: StageVm
let webPoint = ''
let emptyPoint = ''

const environment = () => ({
  UMBRA_CONNECT: stage.libvirtd.uri,
  UMBRA_STATE: stage.settings.stateDirectory,
  UMBRA_REPOSITORY: stage.repository.location,
  HOME: stage.directory,
})

/** The sample guest with a screen to look at, which it has not otherwise. */
async function withScreen(vm: StageVm): Promise<void> {
  const { configuration } = await stage.hypervisor.vm(vm.uuid)
  const screen = `<video><model type='vga'/></video><graphics type='vnc' port='5999' listen='127.0.0.1'/>`
  await stage.hypervisor.define(configuration.replace(/<video>[\s\S]*?<\/video>/, screen))
}

async function begin(): Promise<void> {
  stage = await beginStage('check')
  const disks = await createDisks(stage.images, vmDirectory(stage, 'check-web'), 'qcow2')
  web = await defineVm(stage, 'check-web', disks, { network: { name: 'lan-of-web', mac: '52:54:00:0c:0e:01' } })
  await withScreen(web)
  await mkdir(vmDirectory(stage, 'check-empty'), { recursive: true })
  const path = join(vmDirectory(stage, 'check-empty'), 'root.raw')
  execFileSync('truncate', ['-s', '64M', path])
  empty = await defineVm(stage, 'check-empty', [{ path, format: 'raw' }])
  webPoint = (await backUp(stage, ['check-web'])).recoveryPoint
  emptyPoint = (await backUp(stage, ['check-empty'])).recoveryPoint
}

/** Of what checks make: VMs, networks, files. */
async function ofChecks(): Promise<string[]> {
  const vms = virsh(stage, 'list', '--all', '--name').split('\n')
  const networks = virsh(stage, 'net-list', '--all', '--name').split('\n')
  const made = [...vms, ...networks].map((name) => name.trim()).filter((name) => name.startsWith('umbra-check-'))
  return [...made, ...(await readdir(join(stage.settings.stateDirectory, 'checks')).catch(() => []))]
}

async function nothingOfChecks(): Promise<void> {
  assert.deepEqual(await ofChecks(), [])
  await nothingIsLeft(stage, [web, empty])
}

describe('boot checks of real recovery points', { skip: skipLive, timeout: 900_000 }, () => {
  before(begin)
  after(() => stage?.[Symbol.asyncDispose]())

  it('a guest that comes up: agent, command, port, page, picture; then all of it is gone', async (t) => {
    const disk = join(web.directory, 'root.qcow2')
    const [state, hash] = [await stateOf(stage, web), await hashOf(disk)]
    const beganMs = performance.now()
    const serve =
      'run=mkdir /run/page && echo well > /run/page/health && busybox httpd -p 80 -h /run/page && echo served'
    const noWayOut = 'run=! ip route | grep -q default'
    const probes = [serve, 'http=80/health', 'tcp=80', noWayOut].flatMap((probe) => ['--probe', probe])
    const pictures = join(stage.directory, 'pictures')
    await mkdir(pictures)
    const more = ['--memory', '128MiB', '--screens', pictures, '--json']
    const end = await runUmbra(['check', webPoint, ...probes, ...more], environment())
    t.diagnostic(`the whole check took ${Math.round(performance.now() - beganMs)} ms`)
    assert.equal(end.exitCode, 0, `${end.stdout}\n${end.stderr}`)
    const { checks } = JSON.parse(end.stdout) as { checks: CheckResult[] }
    const [checked] = checks[0]?.vms ?? []
    assert.match(checked?.reason ?? '', /^its agent answered after \d+ s$/)
    const answers = checked?.evidence.probes as { passed: boolean; output?: string; detail: string }[]
    assert.deepEqual([answers[0]?.output, answers.map(({ passed }) => passed)], ['served\n', [true, true, true, true]])
    assert.match(answers[1]?.detail ?? '', /^198\.1[89]\.\d+\.\d+:80 answers with status 200$/)
    const png = await readFile(join(pictures, `${webPoint}-check-web.png`))
    assert.equal(png.toString('latin1', 1, 4), 'PNG')
    await nothingOfChecks()
    assert.deepEqual(await stateOf(stage, web), state)
    assert.equal(await hashOf(disk), hash)
    assert.equal(existsSync(join(stage.directory, 'check-web.console')), false, 'the console of the original')
    const points = await runUmbra(['points'], environment())
    assert.match(points.stdout, new RegExp(`${webPoint} .*boots: yes, \\d{4}-\\d\\d-\\d\\d`))
  })

  it('a guest whose disk holds nothing: told in words, in the time that was given', async () => {
    const end = await runUmbra(['check', emptyPoint, '--timeout', '8s'], environment())
    assert.equal(end.exitCode, 1, `${end.stdout}\n${end.stderr}`)
    assert.match(end.stdout, /check-empty DOES NOT PASS: agent silent after \d+ s/)
    const shown = await runUmbra(['show', emptyPoint], environment())
    assert.match(shown.stdout, /check-empty boots: NO: agent silent after \d+ s/)
    await nothingOfChecks()
  })

  it('kill -9 while the guest comes up: the watchdog removes all of it', async () => {
    const options = { env: { ...process.env, ...environment() }, stdio: 'ignore' } as const
    const umbra = spawn(umbraProgram, ['check', webPoint], options)
    const ended = once(umbra, 'exit')
    await eventually('the VM of the check', async () => {
      const running = virsh(stage, 'list', '--name')
      return running.includes('umbra-check-') ? true : undefined
    })
    assert.equal((await ofChecks()).length, 3, 'a VM, a network and a directory')
    umbra.kill('SIGKILL')
    await ended
    await eventually('the watchdog', async () => ((await ofChecks()).length === 0 ? true : undefined))
    for (const { failed } of await recover(stage.settings)) assert.deepEqual(failed, [])
    await nothingOfChecks()
    assert.equal(await stage.hypervisor.power(web.uuid), 'off')
    assert.equal((await stage.repository.checks(webPoint)).get(webPoint)?.length, 1, 'no verdict of what was not seen')
  })
})
