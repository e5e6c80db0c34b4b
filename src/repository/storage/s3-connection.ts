/**
 * S3Connection: single requests to one bucket, as the SDK makes them, without retries. The only file that knows the SDK,
 * which takes a tenth of a second to load: import it with `await import` when a repository is in an object store.
 */
import { createHash } from 'node:crypto'
import { PassThrough, pipeline, type Readable } from 'node:stream'
import {
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  type S3ClientConfig,
} from '@aws-sdk/client-s3'
import type { S3Address } from './s3-address.ts'
import type { S3Limits } from './s3-attempts.ts'
import { cutOff, isBehindEnd, isMissing } from './s3-errors.ts'

/** Object bodies are bounded by who reads them; every other answer (a list, an error) by this. */
const answerMaxBytes = 16 * 1024 * 1024
const nonceName = 'umbra-put'

export interface FoundObject {
  readonly sizeBytes: number
  /** Which put stored it; undefined when it was none of ours. */
  readonly nonce: string | undefined
}

export interface OpenedBody {
  /** Destroy it, or read it to its end. */
  readonly body: Readable
  /** How long the store says the whole object is. */
  readonly objectBytes: number
}

export interface ListedObject {
  readonly name: string
  readonly sizeBytes: number
  readonly changedAt: Date
}

export interface ListedPage {
  readonly objects: readonly ListedObject[]
  /** Asks for the page after this one. */
  readonly next: string | undefined
}

/** Disposal closes its connections. Every call rejects with the error of the SDK. */
export class S3Connection implements Disposable {
  readonly #client: S3Client
  readonly #bucket: string

  constructor(address: S3Address, limits: S3Limits) {
    this.#bucket = address.bucket
    this.#client = new S3Client(clientConfig(address, limits))
    this.#client.middlewareStack.add(
      (next, context) => async (args) => {
        const result = await next(args)
        const response = result.response as { statusCode?: number; body?: Readable } | undefined
        const isBody = context.commandName === 'GetObjectCommand' && (response?.statusCode ?? 0) < 300
        if (response?.body !== undefined && !isBody) response.body = atMost(answerMaxBytes, response.body)
        return result
      },
      { step: 'deserialize', priority: 'low', name: 'umbraBound' },
    )
  }

  [Symbol.dispose](): void {
    this.#client.destroy()
  }

  /** `ifAbsent`: refused when the object is there. The MD5 lets the store refuse a body that was cut off or spoiled. */
  async put(name: string, body: Buffer, nonce: string, ifAbsent: boolean, abortSignal: AbortSignal): Promise<void> {
    const command = new PutObjectCommand({
      Bucket: this.#bucket,
      Key: name,
      Body: body,
      ContentLength: body.length,
      ContentMD5: createHash('md5').update(body).digest('base64'),
      ContentType: 'application/octet-stream',
      Metadata: { [nonceName]: nonce },
      ...(ifAbsent ? { IfNoneMatch: '*' } : {}),
    })
    await this.#client.send(command, { abortSignal })
  }

  /** Undefined when there is no such object. */
  async head(name: string, abortSignal: AbortSignal): Promise<FoundObject | undefined> {
    try {
      const command = new HeadObjectCommand({ Bucket: this.#bucket, Key: name })
      const { ContentLength, Metadata } = await this.#client.send(command, { abortSignal })
      return { sizeBytes: ContentLength ?? -1, nonce: Metadata?.[nonceName] }
    } catch (error) {
      if (isMissing(error)) return undefined
      throw error
    }
  }

  async open(name: string, abortSignal: AbortSignal): Promise<OpenedBody> {
    const command = new GetObjectCommand({ Bucket: this.#bucket, Key: name })
    const { Body, ContentLength } = await this.#client.send(command, { abortSignal })
    const body = Body as Readable // as it is in Node
    if (ContentLength !== undefined) return { body, objectBytes: ContentLength }
    body.destroy()
    throw cutOff('the store does not say how long the object is')
  }

  /** Undefined when the object ends before `offset`. */
  async openRange(
    name: string,
    offset: number,
    length: number,
    abortSignal: AbortSignal,
  ): Promise<OpenedBody | undefined> {
    try {
      const Range = `bytes=${offset}-${offset + length - 1}`
      const command = new GetObjectCommand({ Bucket: this.#bucket, Key: name, Range })
      const { Body, ContentRange = '' } = await this.#client.send(command, { abortSignal })
      const body = Body as Readable // as it is in Node
      const [, first, last, objectBytes] = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(ContentRange) ?? []
      if (Number(first) === offset && Number(last) >= offset && Number(last) < offset + length) {
        return { body, objectBytes: Number(objectBytes) }
      }
      body.destroy()
      throw cutOff('the store answers with another range than it was asked for')
    } catch (error) {
      if (isBehindEnd(error)) return undefined
      throw error
    }
  }

  async list(prefix: string, after: string | undefined, abortSignal: AbortSignal): Promise<ListedPage> {
    const command = new ListObjectsV2Command({ Bucket: this.#bucket, Prefix: prefix, ContinuationToken: after })
    const page = await this.#client.send(command, { abortSignal })
    const objects = (page.Contents ?? []).flatMap(({ Key, Size, LastModified }) =>
      Key?.startsWith(prefix) && Size !== undefined
        ? [{ name: Key, sizeBytes: Size, changedAt: LastModified ?? new Date(0) }]
        : [],
    )
    return { objects, next: page.IsTruncated ? page.NextContinuationToken : undefined }
  }

  async delete(name: string, abortSignal: AbortSignal): Promise<void> {
    await this.#client.send(new DeleteObjectCommand({ Bucket: this.#bucket, Key: name }), { abortSignal })
  }
}

function clientConfig({ endpoint, region, pathStyle }: S3Address, limits: S3Limits): S3ClientConfig {
  // A store that is not AWS seldom has regions, but every signature names one.
  const { AWS_REGION, AWS_DEFAULT_REGION } = process.env
  const known = region ?? AWS_REGION ?? AWS_DEFAULT_REGION ?? (endpoint === undefined ? undefined : 'us-east-1')
  return {
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(known === undefined ? {} : { region: known }),
    forcePathStyle: pathStyle,
    maxAttempts: 1,
    // Asking first would take a new connection for every pack.
    expectContinueHeader: false,
    // We send a Content-MD5, which every store checks; the newer sums are refused by some and ignored by others.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    requestHandler: { connectionTimeout: limits.connectMs, socketTimeout: limits.idleMs },
  }
}

/** The same stream, which fails when it gets longer. */
function atMost(maxBytes: number, stream: Readable): Readable {
  let bytes = 0
  const bounded = new PassThrough({
    transform(chunk: Buffer, _, done) {
      bytes += chunk.length
      if (bytes > maxBytes) done(new Error(`the store sent an answer of more than ${maxBytes} bytes`))
      else done(null, chunk)
    },
  })
  pipeline(stream, bounded, () => undefined) // whoever reads `bounded` gets the error
  return bounded
}
