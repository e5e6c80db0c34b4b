/**
 * Keys on the command line, with the real program: how they are named, what is refused, and that no secret is told.
 */
import assert from 'node:assert/strict'
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { runUmbra, type UmbraEnd } from '../../test/umbra-process.ts'

let directory = ''
const inside = (name: string) => join(directory, name)
const secret = 'Tr\u00f6stlich-3f9a1c'
const repository = () => ['--repository', inside('repository')]
/** All that any command said, in this file. */
const said: string[] = []

async function umbra(words: readonly string[], environment: Record<string, string> = {}): Promise<UmbraEnd> {
  const noLibvirt = 'qemu+unix:///system?socket=/nowhere/libvirt-sock'
  const base = { UMBRA_STATE: inside('state'), UMBRA_CONNECT: noLibvirt, HOME: directory }
  const end = await runUmbra(words, { ...base, ...environment })
  said.push(end.stdout, end.stderr)
  return end
}

async function done(words: readonly string[], environment?: Record<string, string>): Promise<Record<string, unknown>> {
  const end = await umbra([...words, '--json'], environment)
  assert.equal(end.exitCode, 0, end.stdout + end.stderr)
  return JSON.parse(end.stdout) as Record<string, unknown>
}

async function refused(words: readonly string[], code: string, environment?: Record<string, string>): Promise<string> {
  const end = await umbra([...words, '--json'], environment)
  assert.notEqual(end.exitCode, 0)
  const { error } = JSON.parse(end.stdout) as { error: { code: string; message: string } }
  assert.equal(error.code, code, error.message)
  return error.message
}

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-keys-cli-'))
  await writeFile(inside('pass'), `${secret}\n`)
  await writeFile(inside('wrong'), 'another one')
})
after(() => rm(directory, { recursive: true }))

describe('the keys of a repository', () => {
  it('a new one is encrypted, or is said not to be; otherwise both ways are told', async () => {
    const both = /--passphrase-file FILE or --key-file FILE.*--no-encryption/
    assert.match(await refused(['repository', 'create', inside('repository')], 'USAGE'), both)
    assert.match(await refused(['backup', 'web01', ...repository()], 'USAGE'), both)
    const made = await done(['repository', 'create', inside('repository'), '--passphrase-file', inside('pass')])
    assert.equal(made.encrypted, true)
    const open = await done(['repository', 'create', inside('open'), '--no-encryption'])
    assert.equal(open.encrypted, false)
    await refused(['repository', 'create', inside('repository'), '--no-encryption'], 'REPOSITORY_NOT_EMPTY')
  })

  it('open it as option, variable and in the configuration file', async () => {
    const points = ['points', ...repository()]
    await refused(points, 'REPOSITORY_LOCKED')
    await done([...points, '--passphrase-file', inside('pass')])
    await done(points, { UMBRA_PASSPHRASE_FILE: inside('pass') })
    await done(points, { UMBRA_PASSPHRASE: secret.normalize('NFD') })
    await writeFile(inside('umbra.yaml'), 'repository: repository\npassphrase-file: pass\n')
    await done(['points', '--config', inside('umbra.yaml')])
    await refused([...points, '--passphrase-file', inside('wrong')], 'REPOSITORY_WRONG_KEY', {
      UMBRA_PASSPHRASE_FILE: inside('pass'),
    })
    await refused(points, 'USAGE', { UMBRA_PASSPHRASE_FILE: inside('pass'), UMBRA_PASSPHRASE: secret })
    await refused(['points', '--repository', inside('open')], 'REPOSITORY_NOT_ENCRYPTED', { UMBRA_PASSPHRASE: secret })
    await refused([...points, '--passphrase', secret], 'USAGE').then((message) => said.splice(said.indexOf(message)))
  })

  it('are added, listed, changed and removed', async () => {
    const pass = { UMBRA_PASSPHRASE_FILE: inside('pass') }
    await done(['repository', 'key-file', inside('key')])
    await refused(['repository', 'key-file', inside('key')], 'HOST_IO')
    await refused(['repository', 'key', 'add', ...repository()], 'USAGE', pass)
    await done(['repository', 'key', 'add', '--new-key-file', inside('key'), '--label', 'robot', ...repository()], pass)
    const listed = await done(['repository', 'key', 'list', ...repository()])
    const keys = listed.keys as { id: string; kind: string; label: string }[]
    assert.deepEqual(keys.map(({ kind, label }) => `${kind} ${label}`).sort(), [
      'key-file robot',
      'passphrase the first key',
    ])
    const first = keys.find(({ kind }) => kind === 'passphrase')?.id ?? ''
    await refused(['repository', 'key', 'remove', first, ...repository()], 'KEY_SLOT_IN_USE', pass)
    const change = ['repository', 'key', 'change', '--new-passphrase-file', inside('wrong')]
    await done([...change, ...repository()], pass)
    await refused(['points', ...repository()], 'REPOSITORY_WRONG_KEY', pass)
    await done(['points', ...repository(), '--key-file', inside('key')])
  })

  it('are refused without being repeated when a file holds none', async () => {
    for (const content of ['', '\n', `${secret}\n${secret}\n`, Buffer.from([0x54, 0xff]), secret.repeat(100)]) {
      await writeFile(inside('bad'), content)
      await refused(['points', ...repository(), '--passphrase-file', inside('bad')], 'KEY_INVALID')
      await refused(['points', ...repository(), '--key-file', inside('bad')], 'KEY_INVALID')
    }
    await rm(inside('bad'))
    await refused(['points', ...repository(), '--key-file', inside('nothing')], 'HOST_IO')
  })

  it('are of no matter to recover and doctor', async () => {
    assert.equal((await umbra(['recover', ...repository()])).exitCode, 0)
    const { stdout } = await umbra(['doctor', '--json', ...repository()])
    const { checks } = JSON.parse(stdout) as { checks: { check: string; status: string; detail: string }[] }
    const found = checks.find(({ check }) => check === 'repository')
    assert.equal(found?.status, 'attention')
    assert.match(found?.detail ?? '', /is encrypted, and no key was given/)
  })

  it('UMBRA_PASSPHRASE is not handed on to programs that are started', async () => {
    await writeFile(inside('qemu-img'), `#!/bin/sh\nenv >> ${inside('environment')}\necho qemu-img version 0\n`)
    await chmod(inside('qemu-img'), 0o755)
    const PATH = `${directory}:${process.env.PATH}`
    await umbra(['doctor'], { UMBRA_PASSPHRASE: secret, PATH, UMBRA_REPOSITORY: inside('repository') })
    const environment = await readFile(inside('environment'), 'utf8')
    assert.match(environment, /^UMBRA_REPOSITORY=/m)
    assert.ok(!environment.includes(secret))
  })

  it('and no secret was said or written anywhere', async () => {
    const key = (await readFile(inside('key'), 'latin1')).trim()
    const raw = Buffer.from(key, 'hex')
    const secrets = [Buffer.from(secret), Buffer.from(secret.normalize('NFD')), Buffer.from(key), raw]
    secrets.push(Buffer.from(raw.toString('base64')), Buffer.from(Buffer.from(secret).toString('base64')))
    const written = await readdir(directory, { recursive: true, withFileTypes: true })
    const places = [Buffer.from(said.join('\n'))]
    for (const entry of written) {
      if (!entry.isFile() || (entry.parentPath === directory && ['pass', 'key'].includes(entry.name))) continue
      places.push(await readFile(join(entry.parentPath, entry.name)))
    }
    assert.ok(places.length > 5)
    for (const place of places) for (const one of secrets) assert.ok(!place.includes(one), place.toString())
  })
})
