/**
 * The backend in an object store, against one that answers as badly as it can: conditions that are not known, answers that
 * are lost, busy, late, too long or wrong. What a real store does is in test/live/s3.test.ts.
 */
import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { backendContract } from '../../../test/contract/backend.contract.ts'
import {
  type Interference,
  type ObjectStore,
  type ObjectStoreOptions,
  openObjectStore,
  refuseWith,
} from '../../../test/sim/object-store.ts'
import { Failure } from '../../base/failure.ts'
import type { Backend } from './backend.ts'
import type { S3Limits } from './s3-attempts.ts'
import { openS3Backend } from './s3-backend.ts'

const environment = { ...process.env }
before(() => {
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'very-secret' })
})
after(() => {
  process.env = environment
})

const quick: Partial<S3Limits> = { pauseMs: 1, attempts: 4 }

async function openScene(options: ObjectStoreOptions & { limits?: Partial<S3Limits> } = {}) {
  const store = await openObjectStore(options)
  const address = { bucket: 'bucket', prefix: 'p', endpoint: store.endpoint, pathStyle: true }
  const open = (): Backend => openS3Backend(address, { limits: { ...quick, ...options.limits } })
  const backend = open()
  await backend.put('first', []) // what the store can is found out
  store.requests.length = 0
  return {
    store,
    backend,
    open,
    async [Symbol.asyncDispose]() {
      await backend[Symbol.asyncDispose]()
      await store[Symbol.asyncDispose]()
    },
  }
}

// Without conditions two that race may both be told 'stored': that law needs a store that has them.
backendContract('object store', async () => {
  const store = await openObjectStore()
  const address = { bucket: 'bucket', prefix: randomUUID(), endpoint: store.endpoint, pathStyle: true }
  return {
    open: async () => openS3Backend(address, { limits: quick }),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  }
})

const hasCode = (code: string) => (error: unknown) => error instanceof Failure && error.code === code
const methods = (store: ObjectStore) => store.requests.map(({ method }) => method).join(' ')

/** Interferes with the first `count` requests that `concerns` says, then never again. */
function times(count: number, concerns: string, interfere: Interference): Interference {
  let left = count
  return (request, response, proceed) => {
    if (request.method !== concerns || left === 0) return false
    left -= 1
    return interfere(request, response, proceed)
  }
}

test('a put is one request, refused by the store when the name is taken', async () => {
  await using scene = await openScene()
  assert.equal(await scene.backend.put('a', [Buffer.from('x')]), 'stored')
  assert.equal(await scene.backend.put('a', [Buffer.from('y')]), 'exists')
  assert.equal(methods(scene.store), 'PUT PUT')
  assert.ok(scene.store.requests.every(({ headers }) => headers['if-none-match'] === '*'))
  assert.deepEqual([...scene.store.objects.keys()].sort(), ['/bucket/p/a', '/bucket/p/first'])
})

for (const conditions of ['ignored', 'refused'] as const) {
  test(`a store where conditions are ${conditions} is asked before each put`, async () => {
    await using scene = await openScene({ conditions })
    assert.equal(await scene.backend.put('a', [Buffer.from('x')]), 'stored')
    assert.equal(await scene.backend.put('a', [Buffer.from('y')]), 'exists')
    assert.equal(methods(scene.store), 'HEAD PUT HEAD')
    assert.ok(scene.store.requests.every(({ headers }) => headers['if-none-match'] === undefined))
    assert.equal((await scene.backend.get('a', 10)).toString(), 'x')
    assert.deepEqual([...scene.store.objects.keys()].sort(), ['/bucket/p/a', '/bucket/p/first'])
  })
}

for (const conditions of ['honoured', 'refused'] as const) {
  test(`a put whose answer is lost is stored once and told so (conditions ${conditions})`, async () => {
    await using scene = await openScene({ conditions })
    const loseAnswer: Interference = (_, response, proceed) => {
      proceed()
      response.destroy()
      return true
    }
    scene.store.interfere = times(1, 'PUT', loseAnswer)
    assert.equal(await scene.backend.put('a', [Buffer.from('mine')]), 'stored')
    assert.equal(scene.store.requests.filter(({ method }) => method === 'PUT').length, 1)

    scene.store.interfere = times(1, 'PUT', (request, response) => {
      scene.store.objects.set(request.path, { body: Buffer.from('mine'), nonce: 'another', changedAt: new Date() })
      response.destroy()
      return true
    })
    assert.equal(await scene.backend.put('b', [Buffer.from('mine')]), 'exists')
  })
}

test('a first attempt that arrives after it was given up is known again', async () => {
  await using scene = await openScene()
  let late: (() => void) | undefined
  scene.store.interfere = (request, response, proceed) => {
    if (request.method === 'HEAD') return false
    if (late === undefined) {
      late = proceed
      response.destroy()
      return true
    }
    late() // before the second attempt, after the question whose object is there
    return false
  }
  assert.equal(await scene.backend.put('a', [Buffer.from('mine')]), 'stored')
  assert.equal(methods(scene.store), 'PUT HEAD PUT HEAD')
})

test('a busy store is asked again, but not for ever', async () => {
  await using scene = await openScene()
  await scene.backend.put('a', [Buffer.from('x')])
  for (const [status, code] of [
    [503, 'SlowDown'],
    [500, 'InternalError'],
    [429, 'TooManyRequests'],
    [400, 'RequestTimeout'],
  ] as const) {
    scene.store.interfere = times(3, 'GET', (_, response) => refuseWith(response, status, code))
    assert.equal((await scene.backend.get('a', 10)).toString(), 'x', code)
  }
  scene.store.requests.length = 0
  scene.store.interfere = (_, response) => refuseWith(response, 503, 'SlowDown')
  await assert.rejects(scene.backend.get('a', 10), (error) => {
    assert.ok(error instanceof Failure)
    assert.equal(error.code, 'REPOSITORY_IO')
    assert.match(error.message, /s3:\/\/bucket\/p\/a: SlowDown, in the store’s own words, HTTP 503/)
    return true
  })
  assert.equal(scene.store.requests.length, 4)
})

test('what will not pass is not tried again, and has a code of its own', async () => {
  await using scene = await openScene()
  for (const [status, code, told] of [
    [403, 'AccessDenied', 'REPOSITORY_ACCESS_DENIED'],
    [403, 'SignatureDoesNotMatch', 'REPOSITORY_CREDENTIALS'],
    [403, 'RequestTimeTooSkewed', 'REPOSITORY_CLOCK_SKEW'],
    [404, 'NoSuchBucket', 'REPOSITORY_NO_BUCKET'],
    [400, 'AuthorizationHeaderMalformed', 'REPOSITORY_REGION'],
    [301, 'PermanentRedirect', 'REPOSITORY_REGION'],
    [507, 'XMinioStorageFull', 'REPOSITORY_FULL'],
    [403, 'QuotaExceeded', 'REPOSITORY_FULL'],
    [418, 'Teapot', 'REPOSITORY_IO'],
  ] as const) {
    scene.store.requests.length = 0
    scene.store.interfere = (_, response) => refuseWith(response, status, code)
    await assert.rejects(scene.backend.put('packs/1', [Buffer.alloc(10)]), hasCode(told), code)
    assert.equal(scene.store.requests.length, 1, code)
  }
})

test('a body that arrives spoiled is refused by the store and sent again', async () => {
  await using scene = await openScene()
  scene.store.interfere = times(1, 'PUT', (_, response) => refuseWith(response, 400, 'BadDigest'))
  assert.equal(await scene.backend.put('a', [Buffer.from('x')]), 'stored')
  assert.ok(scene.store.requests[0]?.headers['content-md5'])
})

test('a read goes on where the connection broke', async () => {
  await using scene = await openScene()
  const content = randomBytes(400_000)
  await scene.backend.put('a', [content])
  scene.store.requests.length = 0
  scene.store.interfere = times(1, 'GET', (_, response) => {
    response.writeHead(206, { 'content-length': 300_000, 'content-range': 'bytes 50000-349999/400000' })
    response.write(content.subarray(50_000, 150_000), () => response.destroy())
    return true
  })
  const target = Buffer.alloc(300_000)
  assert.equal(await scene.backend.read('a', 50_000, target), 300_000)
  assert.ok(target.equals(content.subarray(50_000, 350_000)))
  const [, second] = scene.store.requests
  assert.notEqual(second?.headers.range, 'bytes=50000-349999')
})

test('a store that answers with other bytes than it was asked for is not believed', async () => {
  await using scene = await openScene()
  await scene.backend.put('a', [randomBytes(1000)])
  const answers: Interference[] = [
    (_, response) => {
      response.writeHead(200, { 'content-length': 1000 }).end(Buffer.alloc(1000)) // the whole object for a range
      return true
    },
    (_, response) => {
      response.writeHead(206, { 'content-length': 50, 'content-range': 'bytes 0-49/1000' }).end(Buffer.alloc(50))
      return true
    },
    (_, response) => {
      response.writeHead(206, { 'content-length': 900, 'content-range': 'bytes 100-999/1000' }).end(Buffer.alloc(900))
      return true
    },
  ]
  for (const answer of answers) {
    scene.store.interfere = answer
    await assert.rejects(scene.backend.read('a', 100, Buffer.alloc(50)), hasCode('REPOSITORY_IO'))
  }
})

test('an object that is too long is not read, and an endless answer is not collected', async () => {
  await using scene = await openScene()
  scene.store.interfere = (_, response) => {
    response.writeHead(200, { 'content-length': 10 ** 12 }).flushHeaders()
    return true
  }
  await assert.rejects(scene.backend.get('a', 1000), hasCode('REPOSITORY_DAMAGED'))
  let sent = 0
  const mebibyte = Buffer.alloc(1 << 20, '<!-- -->')
  scene.store.interfere = (_, response) => {
    response.writeHead(200)
    const more = () => {
      while (!response.destroyed && response.write(mebibyte)) sent += 1
    }
    response.on('drain', more)
    more()
    return true
  }
  await assert.rejects(Array.fromAsync(scene.backend.list('')), /more than 16777216 bytes/)
  assert.ok(sent < 100, `${sent} MiB were sent`)
})

test('a silent store is given up, and so is a slow one', async () => {
  await using scene = await openScene({ limits: { idleMs: 100, attempts: 2 } })
  scene.store.interfere = () => true
  await assert.rejects(scene.backend.get('a', 10), hasCode('REPOSITORY_IO'))
  assert.equal(scene.store.requests.length, 2)
  await using slow = await openScene({ limits: { totalMs: 300 } })
  slow.store.interfere = (_, response) => {
    response.writeHead(200, { 'content-length': 1_000_000 })
    const timer = setInterval(() => response.write('x'), 20)
    response.on('close', () => clearInterval(timer))
    return true
  }
  await assert.rejects(slow.backend.get('a', 1_000_000), /not done within 0 s/)
})

test('where nobody answers that is soon said; disposal ends what is under way', async () => {
  const scene = await openScene()
  scene.store.interfere = () => true
  const pending = scene.backend.get('a', 10)
  while (scene.store.requests.length === 0) await new Promise((resolve) => setImmediate(resolve))
  await Promise.all([assert.rejects(pending, /was closed/), scene.backend[Symbol.asyncDispose]()])
  await scene.store[Symbol.asyncDispose]()
  await using late = scene.open()
  await assert.rejects(late.get('a', 10), (error) => hasCode('REPOSITORY_IO')(error) && /ECONNREFUSED/.test(`${error}`))
})

test('only old probes are swept', async () => {
  await using scene = await openScene()
  const { objects } = scene.store
  const probe = () => `/bucket/p/tmp/umbra-probe-${randomUUID()}`
  const [old, young, foreign] = [probe(), probe(), '/bucket/p/tmp/somebody-elses']
  const anObject = { body: Buffer.alloc(0), nonce: '' }
  objects.set(old, { ...anObject, changedAt: new Date(0) })
  objects.set(young, { ...anObject, changedAt: new Date() })
  objects.set(foreign, { ...anObject, changedAt: new Date(0) })
  await scene.backend.sweep()
  assert.deepEqual([...objects.keys()].sort(), ['/bucket/p/first', foreign, young].sort())
  assert.deepEqual(
    (await Array.fromAsync(scene.backend.list(''))).map(({ key }) => key),
    ['first'],
  )
})

test('a listing that never ends is given up', async () => {
  await using scene = await openScene()
  scene.store.interfere = (_, response) => {
    const page = '<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>'
    response.end(`<ListBucketResult>${page}</ListBucketResult>`)
    return true
  }
  await assert.rejects(Array.fromAsync(scene.backend.list('')), /same page for ever/)
})
