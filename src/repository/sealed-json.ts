/**
 * Sealed JSON: the form of the small documents of a repository. Two lines: a header that names the kind, the format
 * version, the features a reader must know and the BLAKE3 digest of the second line; and the content.
 */
import * as z from 'zod'
import { check, FormatError, formatVersion, knownFeatures } from './format.ts'
import type { Seal } from './seal.ts'

const headerShape = z.object({
  umbra: z.string(),
  format: z.int().min(1),
  features: z.array(z.string()).max(64).default([]),
  blake3: z.string().regex(/^[0-9a-f]{64}$/),
})

/** The document was written by a program that knows more. */
export class NewerFormatError extends FormatError {}

/** The document as it stands at `key`. */
export function sealJson(seal: Seal, kind: string, key: string, content: unknown): Buffer {
  const body = seal.close(key, kind, Buffer.from(`${JSON.stringify(content)}\n`))
  const blake3 = seal.digest('document', [body]).toString('hex')
  const header = { umbra: kind, format: formatVersion, features: [], blake3 }
  return Buffer.concat([Buffer.from(`${JSON.stringify(header)}\n`), body])
}

/** The content, unchanged since it was sealed and of the given shape; FormatError, or NewerFormatError. */
export function unsealJson<T>(seal: Seal, kind: string, key: string, bytes: Buffer, shape: z.ZodType<T>): T {
  const lineEnd = bytes.indexOf('\n')
  check(lineEnd !== -1 && lineEnd < 16384, 'it has no header')
  const header = parseAs(bytes.subarray(0, lineEnd), headerShape)
  check(header.umbra === kind, `it is no ${kind}`)
  if (header.format > formatVersion) {
    throw new NewerFormatError(`it has format ${header.format}, this program knows ${formatVersion}`)
  }
  const unknown = header.features.filter((feature) => !knownFeatures.includes(feature))
  if (unknown.length > 0) throw new NewerFormatError(`it needs ${unknown.join(', ')}`)
  const body = bytes.subarray(lineEnd + 1)
  check(seal.digest('document', [body]).toString('hex') === header.blake3, 'its digest does not match')
  return parseAs(seal.open(key, kind, body), shape)
}

function parseAs<T>(text: Buffer, shape: z.ZodType<T>): T {
  let value: unknown
  try {
    value = JSON.parse(text.toString('utf8'))
  } catch (error) {
    throw new FormatError('it is no JSON', { cause: error })
  }
  const parsed = shape.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new FormatError(`${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'invalid'}`)
}
