/**
 * Sealed JSON: the form of the small documents of a repository. Two lines: a header that names the kind, the format
 * version, the features a reader must know and the BLAKE3 digest of what follows; and the content, encrypted where the
 * repository is.
 */
import * as z from 'zod'
import { check, FormatError, formatVersion, knownFeatures } from '../format.ts'
import type { Seal } from './seal.ts'

const headerShape = z.object({
  umbra: z.string(),
  format: z.int().min(1),
  features: z.array(z.string()).max(64),
  blake3: z.string().regex(/^[0-9a-f]{64}$/),
})

/** The document was written by a program that knows more. */
export class NewerFormatError extends FormatError {}

/** In the header of every document whose body is encrypted, and in the configuration of a repository that has such. */
export const encryptionFeature = 'encryption'

/** The document as it stands at `key`. `features`: what a reader must know, beside encryption. */
export function sealJson(
  seal: Seal,
  kind: string,
  key: string,
  content: unknown,
  features: readonly string[] = [],
): Buffer {
  const needed = seal.encrypted ? [...new Set([encryptionFeature, ...features])] : features
  const outline = { umbra: kind, format: formatVersion, features: needed }
  const body = seal.close(key, outlineText(outline), Buffer.from(`${JSON.stringify(content)}\n`))
  const blake3 = seal.digest('document', [body]).toString('hex')
  return Buffer.concat([Buffer.from(`${JSON.stringify({ ...outline, blake3 })}\n`), body])
}

interface Outline {
  readonly umbra: string
  readonly format: number
  readonly features: readonly string[]
}

/** What the first line says, as encryption binds the body to it: nobody without the key can take a feature away. */
function outlineText({ umbra, format, features }: Outline): string {
  return JSON.stringify([umbra, format, features])
}

/** The content, unchanged since it was sealed and of the given shape; FormatError, or NewerFormatError. */
export function unsealJson<T>(seal: Seal, kind: string, key: string, bytes: Buffer, shape: z.ZodType<T>): T {
  const { header, body } = splitHeader(bytes)
  check(header.umbra === kind, `it is no ${kind}`)
  if (header.format > formatVersion) {
    throw new NewerFormatError(`it has format ${header.format}, this program knows ${formatVersion}`)
  }
  const unknown = header.features.filter((feature) => !knownFeatures.includes(feature))
  if (unknown.length > 0) throw new NewerFormatError(`it needs ${unknown.join(', ')}`)
  check(seal.digest('document', [body]).toString('hex') === header.blake3, 'its digest does not match')
  return parseAs(seal.open(key, outlineText(header), body), shape)
}

function splitHeader(bytes: Buffer): { header: z.infer<typeof headerShape>; body: Buffer } {
  const lineEnd = bytes.indexOf('\n')
  check(lineEnd !== -1 && lineEnd < 16384, 'it has no header')
  return { header: parseAs(bytes.subarray(0, lineEnd), headerShape), body: bytes.subarray(lineEnd + 1) }
}

/** What the header of a document says a reader must know. FormatError. */
export function featuresOf(bytes: Buffer): readonly string[] {
  return splitHeader(bytes).header.features
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
