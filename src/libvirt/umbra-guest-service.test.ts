import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { appendFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'

const packageSources = join(import.meta.dirname, '..', '..', 'guest', 'package')
const has = (program: string) => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0

/** Says how it was called; some verbs misbehave. */
const fakeGuest = (name: string) => `#!/bin/sh
echo "${name} $*" >>"$UMBRA_GUEST_RUN/calls"
[ "$1" = freeze ] && { echo 'first' >&2; echo 'db says no' >&2; exit 3; }
[ "$1" = prepare ] && sleep 0.3
[ "$1" = describe ] && { printf 'version\\t1\\n'; head -c 3000000 /dev/zero | tr '\\000' x; }
printf 'said\\t%s\\n' "$1"
cat >/dev/null
`

/** The service, run by a shell of this machine, with a guest that only says how it was called. */
class Service {
  readonly directory = mkdtempSync(join(tmpdir(), 'umbra-service-'))
  readonly here = join(this.directory, 'run')
  readonly #process: ChildProcess

  constructor(shell: readonly string[]) {
    const programs = join(this.directory, 'programs')
    mkdirSync(programs)
    for (const name of ['umbra-guest', 'umbra-revert']) writeFileSync(join(programs, name), fakeGuest(name))
    const [program = '', ...words] = shell
    this.#process = spawn(program, [...words, join(packageSources, 'umbra-guest-service')], {
      env: { PATH: process.env.PATH, UMBRA_GUEST_RUN: this.here, UMBRA_GUEST_PROGRAMS: programs },
      stdio: ['ignore', 'inherit', 'inherit'],
    })
  }

  async ready() {
    await until(() => existsSync(join(this.here, 'request')))
  }

  async ask(line: string) {
    await appendFile(join(this.here, 'request'), `${line}\n`)
  }

  async reply(id: string) {
    const file = join(this.here, 'replies', id)
    await until(() => existsSync(file))
    return readFileSync(file, 'utf8')
  }

  get calls(): string[] {
    const file = join(this.here, 'calls')
    return existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : []
  }

  async end() {
    const ended = new Promise((resolve) => this.#process.once('exit', resolve))
    this.#process.kill()
    await ended
  }
}

async function until(isSo: () => boolean) {
  const giveUpAt = performance.now() + 10_000
  while (!isSo()) {
    assert.ok(performance.now() < giveUpAt, 'it takes too long')
    await setTimeout(10)
  }
}

for (const shell of [['dash'], ['busybox', 'sh']]) {
  describe(`the service, run by ${shell.join(' ')}`, { skip: !has(shell[0] ?? '') && 'not here' }, () => {
    let service: Service
    before(async () => {
      service = new Service(shell)
      await service.ready()
    })
    after(async () => {
      await service.end()
      assert.deepEqual(readdirSync(service.here), ['calls'], 'it leaves its FIFO behind')
      rmSync(service.directory, { recursive: true })
    })

    it('answers with the exit code, the reason and what was said', async () => {
      await service.ask('a1 commit 0badcafe')
      assert.equal(await service.reply('a1'), 'exit 0\nreason \nsaid\tcommit\n')
      await service.ask('a2 freeze 0badcafe 30')
      assert.equal(await service.reply('a2'), 'exit 3\nreason db says no\n')
      await service.ask('a3 revert 0badcafe umbra-0badcafe-sda umbra-0badcafe-sdb')
      assert.equal(await service.reply('a3'), 'exit 0\nreason \nsaid\t0badcafe\n')
      assert.equal(service.calls.at(-1), 'umbra-revert 0badcafe umbra-0badcafe-sda umbra-0badcafe-sdb')
    })

    it('bounds what it hands on', async () => {
      await service.ask('b1 describe')
      const text = await service.reply('b1')
      assert.equal(text.length, 'exit 0\nreason \n'.length + 1024 * 1024)
    })

    it('does one thing after the other', async () => {
      await service.ask('c1 prepare 0badcafe 60\nc2 release 0badcafe\nc3 release --all')
      await service.reply('c3')
      const said = ['prepare 0badcafe 60', 'release 0badcafe', 'release --all']
      assert.deepEqual(
        service.calls.slice(-3),
        said.map((call) => `umbra-guest ${call}`),
      )
    })

    it('runs nothing that it does not know', async () => {
      const called = service.calls.length
      const refused = [
        'reboot',
        'commit',
        'commit 0BADCAFE',
        'commit 0badcaf',
        'commit 0badcafe 1',
        'prepare 0badcafe',
        'prepare 0badcafe 60s',
        'prepare 0badcafe 1234567',
        'describe 1',
        'release -all',
        'revert 0badcafe',
        'revert 0badcafe sda',
        'revert 0badcafe umbra-123456789012345678901',
      ]
      for (const [index, request] of refused.entries()) {
        await service.ask(`d${index} ${request}`)
        assert.match(await service.reply(`d${index}`), /^exit 2\nreason [^\n]+\n$/, request)
      }
      assert.equal(service.calls.length, called)
    })

    it('does not even answer what no host says', async () => {
      const called = service.calls.length
      const hostile = [
        'e1 commit 0badcafe; touch /tmp/x',
        'e1 commit $(id)',
        'e1 commit `id`',
        'e1 commit *',
        'e1 commit ../x',
        '../../e1 commit 0badcafe',
        'E1 commit 0badcafe',
        '.. commit 0badcafe',
        '-n commit 0badcafe',
        '0123456789abcdef0 commit 0badcafe',
        'e1',
        '',
        `e1 revert 0badcafe ${'umbra-a '.repeat(600)}`,
        'e1 commit 0badcafe\\',
      ]
      for (const line of hostile) await service.ask(line)
      await service.ask('e2 thaw 0badcafe')
      await service.reply('e2')
      assert.deepEqual(service.calls.slice(called), ['umbra-guest thaw 0badcafe'])
      assert.ok(!existsSync(join(service.here, 'replies', 'e1')))
    })

    it('keeps only the last answers', async () => {
      for (let number = 10; number < 30; number += 1) await service.ask(`f${number} thaw 0badcafe`)
      await service.reply('f29')
      await until(() => readdirSync(join(service.here, 'replies')).filter((name) => !name.startsWith('.')).length <= 8)
      assert.ok(readdirSync(join(service.here, 'replies')).includes('f29'))
    })
  })
}

describe('the package', { skip: ['dpkg-deb', 'xz'].some((it) => !has(it)) && 'not here: dpkg-deb' }, () => {
  it('holds the scripts, the service and the empty directory of writers, and is the same each time', () => {
    const project = mkdtempSync(join(tmpdir(), 'umbra-package-'))
    try {
      // With scripts of its own: the time and the umask they are written with must not matter.
      execFileSync('cp', ['-r', join(packageSources, '..'), join(project, 'guest')])
      mkdirSync(join(project, 'docs'))
      for (const file of ['package.json', 'LICENSE', 'docs/umbra-guest.md']) {
        writeFileSync(join(project, file), readFileSync(join(packageSources, '..', '..', file)))
      }
      for (const name of ['umbra-guest', 'umbra-revert']) writeFileSync(join(project, 'guest', name), '#!/bin/sh\n')
      const build = (directory: string) =>
        execFileSync(join(project, 'guest/package/build'), [join(project, directory)], { encoding: 'utf8' }).trim()
      const first = build('one')
      chmodSync(join(project, 'guest', 'umbra-revert'), 0o600)
      assert.deepEqual(readFileSync(build('two')), readFileSync(first))
      const listed = execFileSync('dpkg-deb', ['-c', first], { encoding: 'utf8' })
      const entries = listed.split('\n').map((line) => [line.slice(0, 10), line.split(' ').at(-1)].join(' '))
      for (const entry of [
        '-rwxr-xr-x ./usr/lib/umbra-guest/umbra-guest',
        '-rwxr-xr-x ./usr/lib/umbra-guest/umbra-revert',
        '-rwxr-xr-x ./usr/lib/umbra-guest/umbra-guest-service',
        '-rw-r--r-- ./lib/systemd/system/umbra-guest.service',
        '-rw-r--r-- ./lib/udev/rules.d/61-umbra-guest.rules',
        'drwxr-xr-x ./etc/umbra/writers.d/',
        'drwxr-xr-x ./usr/share/umbra-guest/writers.d/',
      ]) {
        assert.ok(entries.includes(entry), `${entry} in\n${listed}`)
      }
      assert.doesNotMatch(listed, /etc\/umbra\/writers\.d\/./)
      assert.match(execFileSync('dpkg-deb', ['-I', first], { encoding: 'utf8' }), /Version: \d+\.\d+\.\d+/)
    } finally {
      rmSync(project, { recursive: true })
    }
  })

  const installed = existsSync('/usr/lib/umbra-guest') && 'the package is installed on this machine'
  it('is installed and removed without systemd, whatever fails', { skip: installed }, () => {
    const nothing = { env: { PATH: mkdtempSync(join(tmpdir(), 'umbra-empty-')) } }
    for (const [script, ...words] of [
      ['postinst', 'configure'],
      ['prerm', 'remove'],
      ['postrm', 'purge'],
    ]) {
      assert.equal(spawnSync('/bin/sh', [join(packageSources, script ?? ''), ...words], nothing).status, 0, script)
    }
    rmSync(nothing.env.PATH, { recursive: true })
  })
})
