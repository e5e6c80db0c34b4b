/**
 * The repository in a real S3 store (Ceph's radosgw): the backend's contract, a whole backup there and back, connections
 * that break at the worst moments, and what an operator is told.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { promisify } from 'node:util'
import { Failure } from '../../src/base/failure.ts'
import { createRepository, openRepository, type Repository } from '../../src/repository/repository.ts'
import type { Backend } from '../../src/repository/storage/backend.ts'
import { type S3Address, s3AddressText } from '../../src/repository/storage/s3-address.ts'
import type { S3Limits } from '../../src/repository/storage/s3-attempts.ts'
import { openS3Backend } from '../../src/repository/storage/s3-backend.ts'
import { type BackendPlace, backendContract } from '../contract/backend.contract.ts'
import { umbraProgram } from '../umbra-process.ts'
import { openBreakingProxy } from './breaking-proxy.ts'
import { type Radosgw, skipRadosgw, startRadosgw } from './radosgw.ts'

const bucket = 'umbra'
const mebibyte = 1024 * 1024
const quick: Partial<S3Limits> = { pauseMs: 10, idleMs: 5000 }

const umbra = (...words: string[]) => promisify(execFile)(umbraProgram, words, { timeout: 60_000 })

const hasCode = (code: string) => (error: unknown) => error instanceof Failure && error.code === code

async function keysOf(backend: Backend, prefix = ''): Promise<string[]> {
  return (await Array.fromAsync(backend.list(prefix))).map(({ key }) => key).sort()
}

describe('a repository in radosgw', { skip: skipRadosgw }, () => {
  let radosgw: Radosgw
  let directory: string

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'umbra-s3-'))
    process.env.XDG_CACHE_HOME = join(directory, 'cache')
    radosgw = await startRadosgw()
    await radosgw.makeBucket(bucket)
  })
  after(async () => {
    await radosgw?.[Symbol.asyncDispose]()
    await rm(directory, { recursive: true, force: true })
  })

  /** A prefix of its own in each call. */
  const newAddress = (endpoint = radosgw.endpoint): S3Address => {
    return { bucket, prefix: `test/${randomUUID()}`, endpoint, pathStyle: true }
  }
  async function openPlace(): Promise<BackendPlace> {
    const address = newAddress()
    return { open: async () => openS3Backend(address, { limits: quick }), [Symbol.asyncDispose]: async () => undefined }
  }
  const openQuick = (address: S3Address) => openS3Backend(address, { limits: quick })

  backendContract('radosgw', openPlace)

  it('lists more than a page', async () => {
    await using backend = openQuick(newAddress())
    const keys = Array.from({ length: 1203 }, (_, index) => `points/${String(index).padStart(5, '0')}`)
    for (let at = 0; at < keys.length; at += 40) {
      await Promise.all(keys.slice(at, at + 40).map((key) => backend.put(key, [])))
    }
    assert.deepEqual(await keysOf(backend), keys)
  })

  it('takes a repository: 64 MiB written, read back, verified, deleted', async () => {
    const location = s3AddressText(newAddress())
    const data = Buffer.concat([randomBytes(40 * mebibyte), Buffer.alloc(8 * mebibyte), randomBytes(16 * mebibyte)])
    const { id } = await writePoint(location, data)
    await using repository = await openRepository(location)
    const point = await repository.point(id)
    await using source = await point.openStream('disk')
    const back = Buffer.alloc(data.length)
    for (let at = 0; at < data.length; at += mebibyte) await source.read(at, back.subarray(at, at + mebibyte))
    assert.ok(back.equals(data))
    assert.equal((await point.readDocument('domain.xml')).toString(), '<domain/>')
    const report = await repository.verify()
    assert.deepEqual(report.damage, [])
    await repository.deletePoint(id)
    assert.deepEqual(await repository.listPoints(), [])
    await assert.rejects(createRepository(location, { encryption: 'none' }), hasCode('REPOSITORY_NOT_EMPTY'))
  })

  async function writePoint(location: string, data: Buffer): Promise<{ id: string }> {
    await using repository: Repository = await createRepository(location, { encryption: 'none' })
    await using draft = await repository.beginPoint()
    await using stream = await draft.openStream('disk', data.length)
    const { chunkSizeBytes } = repository
    for (let number = 0; number * chunkSizeBytes < data.length; number++) {
      await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
    }
    await stream.finish()
    await draft.putDocument('domain.xml', Buffer.from('<domain/>'))
    return await draft.commit({ why: 'test' })
  }

  it('is a repository to the commands, which print no credentials', async () => {
    const location = s3AddressText(newAddress())
    const { id } = await writePoint(location, randomBytes(mebibyte))
    const { stdout } = await umbra('points', '--json', '--repository', location)
    assert.ok(stdout.includes(id), stdout)
    await umbra('verify', '--repository', location)
    await umbra('verify', '--repository', location.replace('s3://', 's3://me:hidden@')).then(
      () => assert.fail('credentials in an address were accepted'),
      ({ code, stderr }) => {
        assert.equal(code, 2)
        assert.match(stderr, /credentials do not belong there/)
        assert.doesNotMatch(stderr, /hidden/)
      },
    )
  })

  it('goes on when a connection breaks in the middle of a put and of a read', async () => {
    await using proxy = await openBreakingProxy(radosgw.endpoint)
    await using backend = openQuick(newAddress(proxy.endpoint))
    const content = randomBytes(8 * mebibyte)
    await backend.put('first', []) // the store has been tried
    proxy.breakNext({ of: 'requests', after: 3 * mebibyte })
    assert.equal(await backend.put('packs/1', [content]), 'stored')
    assert.equal(proxy.broken, 1)
    const target = Buffer.alloc(6 * mebibyte)
    proxy.breakNext({ of: 'answers', after: 2 * mebibyte })
    assert.equal(await backend.read('packs/1', mebibyte, target), target.length)
    assert.equal(proxy.broken, 2)
    assert.ok(target.equals(content.subarray(mebibyte, 7 * mebibyte)))
    proxy.breakNext({ of: 'answers', after: 2 * mebibyte })
    assert.ok((await backend.get('packs/1', 8 * mebibyte)).equals(content))
    assert.equal(proxy.broken, 3)
  })

  it('reports a put whose answer was lost as stored, and stores it once', async () => {
    await using proxy = await openBreakingProxy(radosgw.endpoint)
    const address = newAddress(proxy.endpoint)
    await using backend = openQuick(address)
    await backend.put('first', [])
    proxy.breakNext({ of: 'answer' })
    assert.equal(await backend.put('packs/1', [Buffer.from('mine')]), 'stored')
    assert.equal(proxy.broken, 1)
    assert.deepEqual(await keysOf(backend), ['first', 'packs/1'])
    proxy.breakNext({ of: 'answer' })
    assert.equal(await backend.put('packs/1', [Buffer.from('mine')]), 'exists')
    assert.equal(proxy.broken, 2)
  })

  it('refuses a body that was changed on its way', async () => {
    // The store's own part of the bargain: a put with a wrong Content-MD5 stores nothing.
    await using proxy = await openBreakingProxy(radosgw.endpoint)
    const address = newAddress(proxy.endpoint)
    await using backend = openQuick(address)
    await backend.put('first', [])
    proxy.spoilNext(Buffer.from('four score'), Buffer.from('five score'))
    assert.equal(await backend.put('a', [Buffer.from('four score and seven')]), 'stored')
    assert.equal(proxy.broken, 1)
    assert.equal((await backend.get('a', 100)).toString(), 'four score and seven')
  })

  it('says what is wrong: the key, the secret, the bucket, the rights, the room', async () => {
    const address = newAddress()
    const told = async (change: Partial<S3Address>, environment: Record<string, string> = {}) => {
      const before = { ...process.env }
      Object.assign(process.env, environment)
      try {
        await using backend = openS3Backend({ ...address, ...change }, { limits: quick })
        await backend.get('umbra-repository.json', 1000)
        return 'nothing'
      } catch (error) {
        assert.ok(error instanceof Failure, String(error))
        assert.ok(error.message.includes(`s3://${change.bucket ?? bucket}/`), error.message)
        const { AWS_SECRET_ACCESS_KEY: secret = '' } = before
        assert.ok(!JSON.stringify([error.message, error.hint, error.context]).includes(secret))
        return error.code
      } finally {
        process.env = before
      }
    }
    assert.equal(await told({}), 'REPOSITORY_OBJECT_MISSING')
    assert.equal(await told({}, { AWS_ACCESS_KEY_ID: 'somebody' }), 'REPOSITORY_CREDENTIALS')
    assert.equal(await told({}, { AWS_SECRET_ACCESS_KEY: 'something' }), 'REPOSITORY_CREDENTIALS')
    assert.equal(await told({ bucket: 'no-such-bucket' }), 'REPOSITORY_NO_BUCKET')
    await assert.rejects(openRepository(s3AddressText(address)), hasCode('REPOSITORY_NOT_ONE'))
    await radosgw.admin('user', 'suspend', '--uid=umbra')
    assert.equal(await told({}), 'REPOSITORY_ACCESS_DENIED')
    await radosgw.admin('user', 'enable', '--uid=umbra')
  })

  it('is full when the quota is', async () => {
    await radosgw.admin('quota', 'set', '--quota-scope=user', '--uid=umbra', '--max-size=1')
    await radosgw.admin('quota', 'enable', '--quota-scope=user', '--uid=umbra')
    await using backend = openQuick(newAddress())
    await assert.rejects(backend.put('packs/1', [randomBytes(mebibyte)]), hasCode('REPOSITORY_FULL'))
    await radosgw.admin('quota', 'disable', '--quota-scope=user', '--uid=umbra')
  })
})
