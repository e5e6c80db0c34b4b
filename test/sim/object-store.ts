/**
 * A tiny object store that speaks enough of S3 over HTTP for the backend, and answers as badly as a test wants.
 * It checks no signature; what a real store does is seen in test/live/s3.test.ts.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { buffer } from 'node:stream/consumers'

export interface StoredObject {
  readonly body: Buffer
  readonly nonce: string
  readonly changedAt: Date
}

export interface StoreRequest {
  readonly method: string
  /** Bucket and key. */
  readonly path: string
  readonly query: URLSearchParams
  readonly headers: IncomingMessage['headers']
  readonly body: Buffer
}

/** True when it has answered (or hung up) itself. `proceed` does what the store would have done, without answering. */
export type Interference = (
  request: StoreRequest,
  response: ServerResponse,
  proceed: () => void,
) => boolean | Promise<boolean>

export interface ObjectStore extends AsyncDisposable {
  readonly endpoint: string
  readonly objects: Map<string, StoredObject>
  readonly requests: StoreRequest[]
  interfere: Interference
}

export interface ObjectStoreOptions {
  /** What is done with `If-None-Match`: obeyed, not looked at, or answered with 501. */
  readonly conditions?: 'honoured' | 'ignored' | 'refused'
}

/** Disposal ends all connections. */
export async function openObjectStore({ conditions = 'honoured' }: ObjectStoreOptions = {}): Promise<ObjectStore> {
  const objects = new Map<string, StoredObject>()
  const requests: StoreRequest[] = []

  function put({ path, headers, body }: StoreRequest): Answer {
    const ifAbsent = headers['if-none-match'] === '*'
    if (ifAbsent && conditions === 'refused') return answerError(501, 'NotImplemented')
    if (headers['content-md5'] !== createHash('md5').update(body).digest('base64')) return answerError(400, 'BadDigest')
    if (ifAbsent && conditions === 'honoured' && objects.has(path)) return answerError(412, 'PreconditionFailed')
    objects.set(path, { body, nonce: String(headers['x-amz-meta-umbra-put'] ?? ''), changedAt: new Date() })
    return { status: 200 }
  }

  function get({ path, headers, query }: StoreRequest): Answer {
    if (query.has('list-type')) return list(path, query)
    const found = objects.get(path)
    if (found === undefined) return answerError(404, 'NoSuchKey')
    const named = { 'x-amz-meta-umbra-put': found.nonce }
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? []
    if (first === undefined) return { status: 200, headers: named, body: found.body }
    if (Number(first) >= found.body.length) return answerError(416, 'InvalidRange')
    const end = Math.min(Number(last) + 1, found.body.length)
    const range = `bytes ${first}-${end - 1}/${found.body.length}`
    return { status: 206, headers: { ...named, 'content-range': range }, body: found.body.subarray(Number(first), end) }
  }

  function list(bucket: string, query: URLSearchParams): Answer {
    const prefix = `${bucket.replace(/\/$/, '')}/${query.get('prefix') ?? ''}`
    const contents = [...objects]
      .filter(([path]) => path.startsWith(prefix))
      .map(([path, { body, changedAt }]) => {
        const key = path.split('/').slice(2).join('/')
        const at = changedAt.toISOString()
        return `<Contents><Key>${key}</Key><Size>${body.length}</Size><LastModified>${at}</LastModified></Contents>`
      })
    return { status: 200, body: xml(`<ListBucketResult>${contents.join('')}</ListBucketResult>`) }
  }

  function act(request: StoreRequest): Answer {
    if (request.method === 'PUT') return put(request)
    if (request.method === 'GET' || request.method === 'HEAD') return get(request)
    objects.delete(request.path)
    return { status: 204 }
  }

  const store = { objects, requests, interfere: (() => false) as Interference }
  const server = createServer((incoming, response) => {
    const serve = async () => {
      const url = new URL(incoming.url ?? '/', 'http://store')
      const { method = '', headers } = incoming
      const body = await buffer(incoming)
      const request = { method, path: decodeURIComponent(url.pathname), query: url.searchParams, headers, body }
      requests.push(request)
      if (await store.interfere(request, response, () => act(request))) return
      sendAnswer(response, act(request), method === 'HEAD')
    }
    serve().catch(() => response.destroy()) // the client hung up
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  return Object.assign(store, {
    endpoint: `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  })
}

interface Answer {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer
}

const xml = (text: string) => Buffer.from(`<?xml version="1.0" encoding="UTF-8"?>\n${text}`)

/** An error as S3 tells it. */
function answerError(status: number, code: string, message = 'in the store’s own words'): Answer {
  return { status, body: xml(`<Error><Code>${code}</Code><Message>${message}</Message></Error>`) }
}

function sendAnswer(response: ServerResponse, { status, headers, body }: Answer, isHead: boolean): void {
  response.writeHead(status, { ...headers, 'content-length': body?.length ?? 0 })
  response.end(isHead ? undefined : body)
}

/** Answers with an error of S3; for an `Interference`. */
export function refuseWith(response: ServerResponse, status: number, code: string): true {
  sendAnswer(response, answerError(status, code), false)
  return true
}
