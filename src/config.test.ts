/**
 * Precedence of flags, variables, file and defaults; what is refused, and how it is told.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Failure } from './base/failure.ts'
import { type ConfigurationFlags, readConfiguration, type Surroundings } from './config.ts'

let directory = ''
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-config-'))
})
after(() => rm(directory, { recursive: true }))

async function file(text: string): Promise<string> {
  const path = join(directory, `${crypto.randomUUID()}.yaml`)
  await writeFile(path, text)
  return path
}

const read = (flags: ConfigurationFlags, surroundings: Partial<Surroundings> = {}) =>
  readConfiguration(flags, { environment: {}, isRoot: true, defaultFile: '/nowhere/umbra.yaml', ...surroundings })

async function refusal(flags: ConfigurationFlags): Promise<string> {
  try {
    await read(flags)
  } catch (error) {
    assert.ok(error instanceof Failure)
    assert.equal(error.code, 'CONFIG_INVALID')
    assert.doesNotMatch(error.message, /\n/)
    return error.message
  }
  throw new Error('it was accepted')
}

describe('the configuration', () => {
  it('is complete without any file', async () => {
    assert.deepEqual(await read({}), { stateDirectory: '/var/lib/umbra', limits: {} })
    const environment = { HOME: '/home/ada' }
    const user = await read({}, { isRoot: false, environment })
    assert.equal(user.stateDirectory, '/home/ada/.local/state/umbra')
    const xdg = await read({}, { isRoot: false, environment: { ...environment, XDG_STATE_HOME: '/state' } })
    assert.equal(xdg.stateDirectory, '/state/umbra')
  })

  it('may settle the era profile, one of those there are', async () => {
    const config = await file('profile: 2012r2\n')
    assert.equal((await read({ config })).profile, '2012r2')
    assert.equal((await read({ config: await file('profile: 2008\n') })).profile, '2008')
    assert.match(await refusal({ config: await file('profile: 2003r2\n') }), /profile: .*"2012r2"/)
  })

  it('leaves the address of an object store as it is, and makes a directory absolute', async () => {
    const address = 's3://bucket/a?endpoint=http://store:7480'
    assert.equal((await read({ repository: address })).repository, address)
    assert.equal((await read({ config: await file(`repository: ${address}\n`) })).repository, address)
    assert.equal((await read({ config: await file('repository: here\n') })).repository?.endsWith('/here'), true)
  })

  it('prefers the flag to the variable to the file', async () => {
    const config = await file('connect: from-file\nrepository: /file\nstate: /file-state\n')
    assert.deepEqual(await read({ config }), {
      connect: 'from-file',
      repository: '/file',
      stateDirectory: '/file-state',
      limits: {},
      file: config,
    })
    const environment = {
      UMBRA_CONNECT: 'from-variable',
      UMBRA_REPOSITORY: '/variable',
      UMBRA_STATE: '',
      UMBRA_CONFIG: config,
    }
    const mixed = await read({ repository: '/flag' }, { environment })
    assert.equal(mixed.connect, 'from-variable')
    assert.equal(mixed.repository, '/flag')
    assert.equal(mixed.stateDirectory, '/file-state', 'an empty variable is none')
  })

  it('makes paths absolute: typed ones from here, those of the file from the file', async () => {
    const config = await file('repository: backups\n')
    assert.equal((await read({ config })).repository, join(directory, 'backups'))
    assert.equal((await read({ repository: 'backups' })).repository, join(process.cwd(), 'backups'))
  })

  it('takes limits, which may only be lowered', async () => {
    assert.deepEqual((await read({ config: await file('limits:\n  freezeMs: 5000\n') })).limits, { freezeMs: 5000 })
    assert.match(await refusal({ config: await file('limits: { freezeMs: 60001 }') }), /limits\.freezeMs: /)
    assert.match(await refusal({ config: await file('limits: { freezeMs: 1.5 }') }), /limits\.freezeMs: /)
  })

  it('refuses unknown keys by name, and says which there are', async () => {
    assert.match(
      await refusal({ config: await file('repositry: /x\n') }),
      /unknown key repositry; known are connect, repository, passphrase-file, key-file, state, /,
    )
    assert.match(
      await refusal({ config: await file('limits: { freeze: 5 }') }),
      /unknown key limits\.freeze; known are/,
    )
  })

  it('takes directories of files, each with a hook and a name of its own', async () => {
    const web = '{ name: web, directory: /srv/web, hook: /etc/umbra/hooks/web }'
    const { files } = await read({ config: await file(`files:\n- ${web}\n`) })
    assert.deepEqual(files, [
      { name: 'web', directory: '/srv/web', hook: '/etc/umbra/hooks/web', freezeMs: 10_000, exclude: [] },
    ])
    const refused = async (text: string) => refusal({ config: await file(`files:\n${text}\n`) })
    assert.match(await refused(`- ${web}\n- ${web.replace('web,', 'WEB,')}`), /files: two have the same name$/)
    assert.match(
      await refused(`- ${web.replace('/srv/web', 'srv/web')}`),
      /files\.0\.directory: it must be an absolute/,
    )
    assert.match(await refused(`- ${web.replace('/srv/web', '/srv/../web')}`), /directory: it must be an absolute/)
    assert.match(await refused(`- ${web.replace('/srv/web', '/')}`), /directory: it must be an absolute/)
    assert.match(
      await refused(`- ${web.replace('web,', '9d883369-2972-52da-a0f9-13b785d7f052,')}`),
      /it looks like the UUID of a VM/,
    )
    assert.match(
      await refused(`- ${web.replace('hook:', 'hok:')}`),
      /unknown key files\.0\.hok; known are name, directory/,
    )
    assert.match(await refused(`- ${web.replace('}', ', freezeMs: 60001 }')}`), /files\.0\.freezeMs: /)
  })

  it('takes rules of retention, each for some VMs or for all', async () => {
    const rules = "- { vms: ['db*'], keepDaily: 7, keepWithin: 36h }\n- { keepLast: 3 }"
    const { retention } = await read({ config: await file(`retention:\n${rules}\n`) })
    assert.deepEqual(retention, [
      { vms: ['db*'], keepDaily: 7, keepWithinMs: 36 * 3_600_000 },
      { vms: ['*'], keepLast: 3 },
    ])
    const refused = async (rule: string) => refusal({ config: await file(`retention:\n- ${rule}\n`) })
    assert.match(
      await refused('{ keepWithin: 2 months }'),
      /retention\.0\.keepWithin: it must be a number and h, d or w/,
    )
    assert.match(await refused('{ keepDaily: -1 }'), /retention\.0\.keepDaily: /)
    assert.match(await refused('{ keepDayly: 7 }'), /unknown key retention\.0\.keepDayly; known are vms, keepLast/)
    assert.match(await refusal({ config: await file('retention: []') }), /retention: /)
  })

  it('refuses what is no configuration in one line', async () => {
    assert.match(await refusal({ config: '/nowhere/umbra.yaml' }), /there is no such file/)
    assert.match(await refusal({ config: directory }), /EISDIR/)
    assert.match(await refusal({ config: await file('a: [1\nb: 2') }), /it is not YAML: /)
    assert.match(await refusal({ config: await file('- one\n- two\n') }), /a list of keys and values/)
    assert.deepEqual((await read({ config: await file('# nothing yet\n') })).limits, {})
  })
})
