/**
 * Where a repository may be made and opened: directories, and prefixes of an object store; and that what speaks S3 is not
 * loaded for a directory.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { openObjectStore } from '../../../test/sim/object-store.ts'
import { Failure } from '../../base/failure.ts'
import { createPlace, fullLocation, isVacant, openBackend } from './open-backend.ts'

const environment = { ...process.env }
before(() => {
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'secret' })
})
after(() => {
  process.env = environment
})

const hasCode = (code: string) => (error: unknown) => error instanceof Failure && error.code === code

test('a repository is made in a directory that is missing or empty, and nowhere else', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-places-'))
  await using _ = { [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
  const at = (name: string) => path.join(folder, name)
  await assert.rejects(openBackend(at('missing')), hasCode('REPOSITORY_NOT_FOUND'))
  assert.equal(await isVacant(at('missing')), true)
  {
    await using backend = await createPlace(at('missing/deep'))
    assert.equal(backend.location, at('missing/deep'))
  }
  await mkdir(at('missing/deep/lost+found'))
  assert.equal(await isVacant(at('missing/deep')), true)
  await using backend = await openBackend(at('missing/deep'))
  await backend.put('something', [])
  assert.equal(await isVacant(at('missing/deep')), false)
  await assert.rejects(createPlace(at('missing/deep')), /it holds something/)
  await backend.put('umbra-repository.json', [])
  await assert.rejects(createPlace(at('missing/deep')), /it holds a repository/)
  await writeFile(at('file'), '')
  assert.equal(await isVacant(at('file')), false)
  await assert.rejects(createPlace(at('file')), hasCode('REPOSITORY_NOT_ONE'))
  await assert.rejects(openBackend(at('file')), hasCode('REPOSITORY_NOT_ONE'))
})

test('a repository is made below a prefix that holds nothing', async () => {
  await using store = await openObjectStore()
  const location = `s3://bucket/a?endpoint=${store.endpoint}`
  assert.equal(fullLocation(location), location)
  assert.equal(await isVacant(location), true)
  {
    await using backend = await createPlace(location)
    assert.equal(backend.location, location)
    await backend.put('packs/one', [])
  }
  assert.equal(await isVacant(location), false)
  assert.equal(await isVacant(location.replace('/a', '/b')), true)
  await assert.rejects(createPlace(location), hasCode('REPOSITORY_NOT_EMPTY'))
  await using backend = await openBackend(location)
  for (let number = 0; number < 5; number++) await backend.put(`packs/${number}`, [])
  await assert.rejects(createPlace(location), /and more/)
  await backend.put('umbra-repository.json', [])
  await assert.rejects(createPlace(location), /it holds a repository/)
})

test('an address is not taken for a directory, nor the other way round', async () => {
  await assert.rejects(openBackend('s3://key:word@bucket'), hasCode('USAGE'))
  assert.equal(fullLocation('s3'), path.resolve('s3'))
})

test('a command on a directory does not load what speaks S3', async () => {
  const modules = (file: string) => `
    await import(${JSON.stringify(path.join(import.meta.dirname, file))})
    const { createRequire } = await import('node:module')
    console.log(Object.keys(createRequire('/').cache).filter((name) => /@aws-sdk|@smithy/.test(name)).length)`
  const count = async (file: string) =>
    Number((await promisify(execFile)(process.execPath, ['--input-type=module', '-e', modules(file)])).stdout)
  assert.equal(await count('../../cli/program.ts'), 0)
  assert.ok((await count('s3-backend.ts')) > 0, 'this test sees nothing')
})
