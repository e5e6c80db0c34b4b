/**
 * What the program says to input that is wrong before any VM is asked: one line that says what to do, the exit code,
 * one JSON document when asked for one, and nothing changed. Runs the real program.
 */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { runUmbra, type UmbraEnd } from '../../test/umbra-process.ts'

let directory = ''
const inside = (name: string) => join(directory, name)
const noLibvirt = 'qemu+unix:///system?socket=/nowhere/libvirt-sock'

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-cli-'))
  await mkdir(inside('other-files'))
  await writeFile(inside('other-files/letter.txt'), 'Dear Ada')
  await mkdir(inside('newer'))
  const header = { umbra: 'repository', format: 99, features: [], blake3: '0'.repeat(64) }
  await writeFile(inside('newer/umbra-repository.json'), `${JSON.stringify(header)}\n{}\n`)
  await writeFile(inside('wrong.yaml'), 'repositry: /backup\n')
})
after(() => rm(directory, { recursive: true }))

const umbra = (...words: string[]): Promise<UmbraEnd> =>
  runUmbra(words, { UMBRA_STATE: inside('state'), UMBRA_CONNECT: noLibvirt, HOME: directory })

/** Two lines for people: what happened, and what to do. */
async function refused(words: readonly string[], exitCode: number, message: RegExp): Promise<void> {
  const end = await umbra(...words)
  const [first = '', second = '', ...others] = end.stderr.trimEnd().split('\n')
  assert.equal(end.exitCode, exitCode, end.stderr)
  assert.equal(end.stdout, '')
  assert.match(first, message)
  assert.match(first, /^umbra: /)
  assert.match(second, /^ {2}-> [A-Z].*\.$|^ {2}-> umbra .*\.$/)
  assert.deepEqual(others, [])
}

/** The same for programs: one document on standard output and nothing else. */
async function refusedInJson(words: readonly string[], exitCode: number, code: string): Promise<void> {
  const end = await umbra(...words, '--json')
  assert.equal(end.exitCode, exitCode, end.stdout)
  assert.equal(end.stderr, '')
  const { error } = JSON.parse(end.stdout) as { error: Record<string, unknown> }
  assert.equal(error.code, code)
  assert.deepEqual(Object.keys(error), ['code', 'message', 'hint', 'context'])
}

describe('wrong usage', { concurrency: 2 }, () => {
  const cases: [string, RegExp][] = [
    ['frobnicate', /unknown command 'frobnicate'/],
    ['vms --frobnicate', /unknown option '--frobnicate'/],
    ['backup', /name the VMs to back up, or say --all/],
    ['backup web01 --all', /not both/],
    ['backup web01 --except db01', /--except goes with --all/],
    ['backup web01', /no repository is named: use --repository, UMBRA_REPOSITORY/],
    ['backup web01 --method magic', /Allowed choices are auto, child-snapshot, guest-freeze, checkpoint, saved-state/],
    ['backup web01 --recovery magic', /Allowed choices are auto, by-reading, on-host, in-guest/],
    ['backup web01 --method checkpoint --recovery in-guest', /--recovery goes with --method child-snapshot/],
    ['vms --profile 2003', /Allowed choices are 2008, 2012, 2012r2, modern/],
    ['backup web01 --freeze-limit 60001', /from 1 to 60000/],
    ['backup web01 --limit-read 50mb', /It may mean bytes or bits: write 50MB or 50mbit/],
    ['restore ab2c --limit-write 1kB', /It must be at least 64KiB a second/],
    ['restore', /missing required argument 'point'/],
    ['restore abcd --network lab', /It must be OLD=NEW/],
    ['restore abcd --disk vda', /It must be TARGET=PATH/],
    ['restore abcd --disk vda=/x,format=vmdk', /format must be one of raw, qcow2, vhd, vhdx/],
    ['restore abcd --disk vda=/x --disk vda=/y', /vda is named twice/],
    ['restore abcd --format vmdk', /Allowed choices are raw, qcow2, vhd, vhdx/],
    ['restore abcd --disk vda=/nowhere/at/all/x --repository /nowhere', /there is no directory \/nowhere\/at\/all/],
    ['restore abcd --keep-mac --repository /nowhere', /--keep-mac goes with --as/],
    ['restore abcd --to /nowhere/at/all --repository /nowhere', /there is no directory \/nowhere\/at\/all/],
    ['vms --connect qemu+ssh://host/system', /is not a libvirt address that Umbra understands/],
    ['vms --config /nowhere/umbra.yaml', /\/nowhere\/umbra\.yaml: there is no such file/],
  ]
  for (const [line, message] of cases) it(`umbra ${line}`, () => refused(line.split(' '), 2, message))

  it('in JSON', async () => {
    await refusedInJson(['vms', '--frobnicate'], 2, 'USAGE')
    await refusedInJson(['points', '--repository', '/nowhere'], 1, 'REPOSITORY_NOT_FOUND')
  })

  it('names unknown keys of the configuration', async () => {
    await refused(['points', '--config', inside('wrong.yaml')], 2, /unknown key repositry; known are connect/)
  })

  it('without any command shows the help', async () => {
    const { exitCode, stderr } = await umbra()
    assert.equal(exitCode, 2)
    assert.match(stderr, /Usage: umbra/)
  })
})

describe('what is not there', { concurrency: 2 }, () => {
  it('libvirt', () => refused(['vms'], 1, /can not be reached: connect ENOENT \/nowhere\/libvirt-sock/))
  it('a repository', () => refused(['points', '--repository', inside('nothing')], 1, /there is no repository at/))
  it('a repository in other files', () =>
    refused(['points', '--repository', inside('other-files')], 1, /is not a repository/))
  it('a repository that is a file', () =>
    refused(['points', '--repository', inside('wrong.yaml')], 1, /is not a repository: it is a file/))
  it('a program new enough', () =>
    refused(['verify', '--repository', inside('newer')], 1, /was written by a newer umbra: it has format 99/))

  it('and nothing of all that was changed', async () => {
    assert.deepEqual((await readdir(directory)).sort(), ['newer', 'other-files', 'wrong.yaml'])
  })
})

describe('umbra', () => {
  it('has a help that tells verbs, exit codes and variables, and a version', async () => {
    const help = await umbra('--help')
    assert.equal(help.exitCode, 0)
    for (const word of ['doctor', 'backup', 'restore', 'recover', 'Exit codes', '130', 'UMBRA_REPOSITORY']) {
      assert.ok(help.stdout.includes(word), word)
    }
    assert.ok(help.stdout.split('\n').every((line) => line.length <= 80))
    const version = await umbra('--version')
    assert.match(version.stdout, /^\d+\.\d+\.\d+\n$/)
  })

  it('recovers nothing where nothing was interrupted, without libvirt', async () => {
    const { exitCode, stdout } = await umbra('recover', '--json')
    assert.equal(exitCode, 0)
    assert.deepEqual(JSON.parse(stdout), { sessions: [], instants: [] })
  })

  it('doctor tells what fails, and never hangs', async () => {
    const { exitCode, stdout } = await umbra('doctor', '--json')
    assert.equal(exitCode, 1)
    const { healthy, checks } = JSON.parse(stdout) as { healthy: boolean; checks: { check: string; status: string }[] }
    assert.equal(healthy, false)
    assert.equal(checks.find(({ check }) => check === 'libvirt')?.status, 'failed')
    assert.equal(checks.find(({ check }) => check === 'Node.js')?.status, 'ok')
  })
})
