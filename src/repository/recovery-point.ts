/**
 * A recovery point as it stands in the repository: its manifest, its id, and what one can do with it.
 * The manifest is written last: a recovery point exists when its manifest does (law 6).
 */
import { randomInt } from 'node:crypto'
import * as z from 'zod'
import type { JsonObject } from '../base/cleanup.ts'
import type { LendingSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import { check, objectKeys } from './format.ts'
import type { Seal } from './keys/seal.ts'
import { sealJson, unsealJson } from './keys/sealed-json.ts'

/** What became of a stream when it was written. Sizes in bytes; a stream has newChunks + knownChunks + zeroChunks chunks. */
export interface StreamSummary {
  readonly name: string
  readonly sizeBytes: number
  /** Given to the writer, zeros included. */
  readonly readBytes: number
  /** Of the new chunks, compressed, as they stand in the packs. */
  readonly storedBytes: number
  readonly newChunks: number
  /** Chunks the repository held already, or that came twice. */
  readonly knownChunks: number
  readonly zeroChunks: number
}

/** What one can restore. Nothing needs to be released but the sources it opens. */
export interface RecoveryPoint {
  readonly id: string
  readonly createdAt: Date
  readonly content: JsonObject
  readonly streams: readonly StreamSummary[]
  readonly documents: readonly string[]
  /**
   * The stream as a disk; dispose it. Every chunk is verified before it is returned: REPOSITORY_CHUNK_CORRUPT names
   * stream and offset. RECOVERY_POINT_PART_NOT_FOUND when there is no such stream.
   */
  openStream(name: string): Promise<LendingSource>
  /** The document, verified. RECOVERY_POINT_PART_NOT_FOUND, REPOSITORY_CHUNK_CORRUPT. */
  readDocument(name: string): Promise<Uint8Array>
}

/** A recovery point whose manifest can not be believed. */
export interface DamagedPoint {
  readonly id: string
  readonly reason: string
}

/** The longest manifest that is read or written. */
export const manifestMaxBytes = 64 * 1024 * 1024
/** The longest document of a recovery point. */
export const documentMaxBytes = 64 * 1024 * 1024

/** A string of bytes kept as chunks: documents, and the roots of stream maps. */
export interface Blob {
  readonly sizeBytes: number
  readonly chunks: readonly string[]
}

export interface ManifestStream extends StreamSummary {
  /** The root of the stream's map. */
  readonly map: Blob
}

export interface ManifestDocument {
  readonly name: string
  readonly blob: Blob
}

export interface Manifest {
  readonly id: string
  readonly repositoryId: string
  readonly createdAt: string
  readonly content: JsonObject
  readonly streams: readonly ManifestStream[]
  readonly documents: readonly ManifestDocument[]
}

const count = z.int().min(0)
const blobShape = z.object({ sizeBytes: count, chunks: z.array(z.string().regex(/^[0-9a-f]{64}$/)) })
const nameShape = z.string().min(1).max(1024)
const streamShape = z.object({
  name: nameShape,
  sizeBytes: count,
  readBytes: count,
  storedBytes: count,
  newChunks: count,
  knownChunks: count,
  zeroChunks: count,
  map: blobShape,
})
const jsonShape = z.custom<JsonObject>((value) => typeof value === 'object' && value !== null && !Array.isArray(value))
const manifestShape = z.object({
  id: z.string(),
  repositoryId: z.string(),
  createdAt: z.iso.datetime(),
  content: jsonShape,
  streams: z.array(streamShape),
  documents: z.array(z.object({ name: nameShape, blob: blobShape })),
})

const kind = 'recovery point'

/** In the header of a manifest when the map of one of its streams has places of parts. */
export const partsFeature = 'parts'

/** `features`: what a reader must know to restore the point. */
export function encodeManifest(seal: Seal, manifest: Manifest, features: readonly string[] = []): Buffer {
  return sealJson(seal, kind, objectKeys.point(manifest.id), manifest, features)
}

/** The manifest of the point `id`; FormatError when it is not one or not this one's. */
export function decodeManifest(seal: Seal, id: string, repositoryId: string, bytes: Buffer): Manifest {
  check(bytes.length <= manifestMaxBytes, 'it is too long')
  const manifest = unsealJson<Manifest>(seal, kind, objectKeys.point(id), bytes, manifestShape)
  check(manifest.id === id, `it belongs to recovery point ${manifest.id}`)
  check(manifest.repositoryId === repositoryId, 'it belongs to another repository')
  for (const names of [manifest.streams, manifest.documents]) {
    check(new Set(names.map((part) => part.name)).size === names.length, 'a name stands in it twice')
  }
  return manifest
}

/** The stream or document `name` of the point `pointId`; RECOVERY_POINT_PART_NOT_FOUND. */
export function findPart<Part extends { readonly name: string }>(
  pointId: string,
  part: 'stream' | 'document',
  parts: readonly Part[],
  name: string,
): Part {
  const found = parts.find((one) => one.name === name)
  if (found !== undefined) return found
  const names = parts.map((one) => one.name)
  throw failure('RECOVERY_POINT_PART_NOT_FOUND', { point: pointId, kind: part, name, names })
}

const suffixLetters = 'abcdefghjkmnpqrstuvwxyz23456789'

/** An id that sorts by time and is told from others of the same second by four letters: 20261122T010203Z-ab2c. */
export function makePointId(now: Date): string {
  const time = now.toISOString().replace(/[-:]|\.\d+/g, '')
  const suffix = Array.from({ length: 4 }, () => suffixLetters[randomInt(suffixLetters.length)]).join('')
  return `${time}-${suffix}`
}

export function isPointId(text: string): boolean {
  return /^\d{8}T\d{6}Z-[a-z0-9]{4}$/.test(text)
}

/** Whether `typed` means the point `id`: its beginning, or the letters at its end. */
export function pointIdFits(id: string, typed: string): boolean {
  return typed !== '' && (id.startsWith(typed) || id.endsWith(`-${typed}`))
}
