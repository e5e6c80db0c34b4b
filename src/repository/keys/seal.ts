/**
 * Seal: how a repository names and protects what it stores. Without encryption names and digests are plain BLAKE3, which
 * proves integrity to everybody; with it they are keyed, which proves that somebody with the key wrote them, and everything
 * but the outlines of packs is unreadable without it. docs/repository-format.md, "Encryption"; keyed-seal.ts is that one.
 */
import { asBuffer, blake3Digest, blake3DigestOf } from '../chunks/blake3.ts'

/** What a digest is over; a digest of one kind is never valid as one of another. */
export type Digested = 'table of contents' | 'index' | 'document' | 'configuration'

export interface Seal {
  readonly encrypted: boolean
  /** The name of a record's plain bytes, 32 bytes. */
  idOf(plain: Uint8Array): Buffer
  /** The digest of `parts` as if they were one, 32 bytes. */
  digest(what: Digested, parts: readonly Uint8Array[]): Buffer
  /** The body of a document as it is stored at `key`. `outline`: what stands readable above it, bound to it. */
  close(key: string, outline: string, body: Buffer): Buffer
  /** FormatError when it was not closed with this key for this place and outline. */
  open(key: string, outline: string, stored: Buffer): Buffer
  /** What the codec threads need for records; undefined without encryption. */
  readonly recordKeys: RecordKeys | undefined
}

/** Each in an array of its own, so that sending it to a thread copies nothing else. */
export interface RecordKeys {
  /** Key of the names, 32 bytes. */
  readonly idKey: Uint8Array
  /** Every record's own key is derived from it and the record's id, 32 bytes. */
  readonly dataKey: Uint8Array
}

/** Integrity without secrets: for repositories made without encryption, and for the few objects that must be read before a key is there. */
export const plainSeal: Seal = {
  encrypted: false,
  idOf: blake3Digest,
  digest: (_, parts) =>
    parts.length === 1 ? blake3Digest(asBuffer(parts[0] ?? Buffer.alloc(0))) : blake3DigestOf(parts),
  close: (_key, _outline, body) => body,
  open: (_key, _outline, stored) => stored,
  recordKeys: undefined,
}
