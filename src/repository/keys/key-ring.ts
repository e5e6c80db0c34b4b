/**
 * KeyRing: the key slots of an encrypted repository. Every slot holds the same master key, so keys come and go without any
 * data being rewritten. A slot is put whole and proven before another one is removed, and the slot that opened the
 * repository is never removed but by its successor: whatever crashes, a slot that works is left.
 */
import { Failure, invariant } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { check, FormatError, objectKeys, smallDocumentMaxBytes } from '../format.ts'
import { isPointId, makePointId, pointIdFits } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'
import { type KeyChoice, type Secret, type SecretKind, secretOf } from './key-secret.ts'
import {
  costOf,
  decodeKeySlot,
  encodeKeySlot,
  type KeySlot,
  labelMaxLength,
  makeKeySlot,
  openKeySlot,
  secretWord,
} from './key-slots.ts'

/** No repository has more, and no more are looked at. */
const mostSlots = 32

export interface ListedSlots {
  /** By their time. */
  readonly slots: readonly KeySlot[]
  readonly unreadable: readonly { readonly id: string; readonly reason: string }[]
}

/** The slots of the repository, without any key. */
export async function readKeySlots(backend: Backend, repositoryId: string): Promise<ListedSlots> {
  const slots: KeySlot[] = []
  const unreadable: { id: string; reason: string }[] = []
  for (const id of await slotIds(backend)) {
    try {
      const slot = decodeKeySlot(id, await backend.get(objectKeys.keySlot(id), smallDocumentMaxBytes))
      check(slot.repositoryId === repositoryId, 'it belongs to another repository')
      slots.push(slot)
    } catch (error) {
      if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') continue // removed meanwhile
      const isDamage = error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_DAMAGED')
      if (!isDamage) throw error
      unreadable.push({ id, reason: error.message })
    }
  }
  return { slots, unreadable }
}

async function slotIds(backend: Backend): Promise<string[]> {
  const ids: string[] = []
  for await (const { key } of backend.list('keys/')) {
    const id = key.slice('keys/'.length, -'.json'.length)
    if (isPointId(id) && key === objectKeys.keySlot(id)) ids.push(id)
    if (ids.length === mostSlots) break
  }
  return ids.sort()
}

export interface Unlocked {
  readonly masterKey: Buffer
  readonly slot: KeySlot
}

/** The master key from the slot that `choice` opens. REPOSITORY_WRONG_KEY, KEY_INVALID. */
export async function unlockSlot(backend: Backend, repositoryId: string, choice: KeyChoice): Promise<Unlocked> {
  const secret = await secretOf(choice)
  const { slots, unreadable } = await readKeySlots(backend, repositoryId)
  const fitting = slots.filter((slot) => slot.kind === secret.kind).sort((one, other) => costOf(one) - costOf(other))
  for (const slot of fitting) {
    const masterKey = await tryKeySlot(slot, secret)
    if (masterKey !== undefined) return { masterKey, slot }
  }
  throw failure('REPOSITORY_WRONG_KEY', {
    path: backend.location,
    what: secretWord[secret.kind],
    reason: whyNot(secret.kind, fitting, slots, unreadable.length),
  })
}

async function tryKeySlot(slot: KeySlot, secret: Secret): Promise<Buffer | undefined> {
  try {
    return await openKeySlot(slot, secret)
  } catch (error) {
    if (error instanceof FormatError) return undefined
    throw error
  }
}

function whyNot(kind: SecretKind, tried: readonly KeySlot[], all: readonly KeySlot[], unreadable: number): string {
  const spoiled = unreadable === 0 ? '' : `; ${unreadable} of its key slots can not be read`
  if (tried.length > 0) return `it opens none of ${tried.length}${spoiled}`
  const other = all.length === 0 ? '' : ', but of another kind'
  return `there is no slot for a ${secretWord[kind]}${other}${spoiled}`
}

/** For whoever has unlocked the repository. */
export class KeyRing {
  readonly #backend: Backend
  readonly #repositoryId: string
  readonly #masterKey: Buffer
  readonly #now: () => Date
  #openedWith: KeySlot

  constructor(backend: Backend, repositoryId: string, { masterKey, slot }: Unlocked, now: () => Date) {
    this.#backend = backend
    this.#repositoryId = repositoryId
    this.#masterKey = masterKey
    this.#openedWith = slot
    this.#now = now
  }

  /** The id of the slot that opened the repository. */
  get openedWith(): string {
    return this.#openedWith.id
  }

  list(): Promise<ListedSlots> {
    return readKeySlots(this.#backend, this.#repositoryId)
  }

  /** Another key that opens the repository; proven when it resolves. KEY_INVALID, KEY_SLOTS_FULL. */
  async add(choice: KeyChoice, label: string): Promise<KeySlot> {
    const secret = await secretOf(choice)
    const { slots, unreadable } = await this.list()
    if (slots.length + unreadable.length >= mostSlots) throw failure('KEY_SLOTS_FULL', { mostSlots })
    const slot = await putKeySlot(this.#backend, this.#repositoryId, secret, label, this.#masterKey, this.#now())
    const stored = await this.#backend.get(objectKeys.keySlot(slot.id), smallDocumentMaxBytes)
    const proven = await openKeySlot(decodeKeySlot(slot.id, stored), secret)
    invariant(proven.equals(this.#masterKey), 'a key slot holds another key')
    return slot
  }

  /** Removes the slot that `typed` means. KEY_SLOT_NOT_FOUND; KEY_SLOT_IN_USE for the one that opened the repository. */
  async remove(typed: string): Promise<string> {
    const ids = (await slotIds(this.#backend)).filter((id) => pointIdFits(id, typed))
    const [id, ...others] = ids
    if (id === undefined || others.length > 0) {
      const reason = id === undefined ? 'there is none' : `it fits several: ${ids.join(', ')}`
      throw failure('KEY_SLOT_NOT_FOUND', { slot: typed, reason })
    }
    if (id === this.openedWith) throw failure('KEY_SLOT_IN_USE', { slot: id })
    await this.#backend.delete(objectKeys.keySlot(id))
    await this.#keepOwn()
    return id
  }

  /** Another key in place of the one that opened the repository. */
  async change(choice: KeyChoice): Promise<KeySlot> {
    const former = this.#openedWith
    const slot = await this.add(choice, former.label)
    this.#openedWith = slot
    await this.#backend.delete(objectKeys.keySlot(former.id))
    await this.#keepOwn()
    return slot
  }

  /** Two who removed each other's slot at once would leave none: each looks for its own, and puts it back. */
  async #keepOwn(): Promise<void> {
    const key = objectKeys.keySlot(this.openedWith)
    if (!(await slotIds(this.#backend)).includes(this.openedWith)) {
      await this.#backend.put(key, [encodeKeySlot(this.#openedWith)])
    }
  }
}

/** Stores a new slot of a new name. */
export async function putKeySlot(
  backend: Backend,
  repositoryId: string,
  secret: Secret,
  label: string,
  masterKey: Uint8Array,
  now: Date,
): Promise<KeySlot> {
  invariant(label.length <= labelMaxLength, `a label of ${label.length} characters`)
  for (;;) {
    const about = { id: makePointId(now), repositoryId, label, createdAt: now.toISOString() }
    const slot = await makeKeySlot(about, secret, masterKey)
    if ((await backend.put(objectKeys.keySlot(slot.id), [encodeKeySlot(slot)])) === 'stored') return slot
  }
}
