/**
 * The configuration, umbra-repository.json: what makes a place a repository. It holds nothing secret and is read before any
 * key is there; in an encrypted repository it carries a proof that only who has the key can make, which is checked as soon
 * as the repository is unlocked.
 */
import { randomUUID } from 'node:crypto'
import * as z from 'zod'
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { compressionLevels } from './chunks/chunk-codec.ts'
import { check, chunkSizeLimits, FormatError, objectKeys, smallDocumentMaxBytes } from './format.ts'
import { plainSeal, type Seal } from './keys/seal.ts'
import { encryptionFeature, featuresOf, NewerFormatError, sealJson, unsealJson } from './keys/sealed-json.ts'
import type { Backend } from './storage/backend.ts'
import { isChunkSize } from './streams/stream-map-root.ts'

const configShape = z.object({
  id: z.uuid(),
  chunkSizeBytes: z.int().refine(isChunkSize, 'no chunk size'),
  compressionLevel: z.int().min(compressionLevels.min).max(compressionLevels.max),
  /** Where there is encryption: the keyed digest of all other fields. */
  encryption: z.object({ proof: z.string().regex(/^[0-9a-f]{64}$/) }).optional(),
})
export type RepositoryConfig = z.infer<typeof configShape>

const kind = 'repository'

/** The configuration of a new repository, not yet proven. USAGE. */
export function newConfig(
  chunkSizeBytes: number = chunkSizeLimits.defaultBytes,
  compressionLevel: number = compressionLevels.default,
): RepositoryConfig {
  const config = { id: randomUUID(), chunkSizeBytes, compressionLevel }
  if (configShape.safeParse(config).success && compressionLevel !== -1) return config
  const reason = `chunks of ${chunkSizeBytes} bytes at zstd level ${compressionLevel} are not possible`
  throw failure('USAGE', { reason })
}

/** Stores the configuration, if there is none, with the proof that goes with `seal`. */
export function putConfig(backend: Backend, config: RepositoryConfig, seal: Seal): Promise<'stored' | 'exists'> {
  const proven = seal.encrypted ? { ...config, encryption: { proof: proofOf(config, seal) } } : config
  const features = seal.encrypted ? [encryptionFeature] : []
  return backend.put(objectKeys.config, [sealJson(plainSeal, kind, objectKeys.config, proven, features)])
}

/** REPOSITORY_NOT_ONE, REPOSITORY_NEWER_FORMAT, REPOSITORY_DAMAGED. */
export async function readConfig(backend: Backend): Promise<RepositoryConfig> {
  const place = backend.location
  try {
    const bytes = await backend.get(objectKeys.config, smallDocumentMaxBytes)
    const config = unsealJson(plainSeal, kind, objectKeys.config, bytes, configShape)
    const isEncrypted = featuresOf(bytes).includes(encryptionFeature)
    check(isEncrypted === (config.encryption !== undefined), 'it says two things about encryption')
    return config
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') {
      throw failure('REPOSITORY_NOT_ONE', { path: place, reason: `it has no ${objectKeys.config}` }, error)
    }
    if (error instanceof NewerFormatError) {
      throw failure('REPOSITORY_NEWER_FORMAT', { path: place, reason: error.message }, error)
    }
    if (error instanceof FormatError) {
      throw failure('REPOSITORY_DAMAGED', { path: `${place}/${objectKeys.config}`, reason: error.message }, error)
    }
    throw error
  }
}

/** Whoever wrote the configuration had the key that opened the repository. REPOSITORY_DAMAGED. */
export function checkProof(backend: Backend, config: RepositoryConfig, seal: Seal): void {
  if (config.encryption?.proof === proofOf(config, seal)) return
  const reason = 'somebody without the key has changed it'
  throw failure('REPOSITORY_DAMAGED', { path: `${backend.location}/${objectKeys.config}`, reason })
}

function proofOf({ encryption: _, ...fields }: RepositoryConfig, seal: Seal): string {
  return seal.digest('configuration', [Buffer.from(JSON.stringify(fields))]).toString('hex')
}
