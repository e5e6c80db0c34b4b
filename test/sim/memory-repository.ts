/** A repository in memory, for tests that make many or large ones. */

import { type Encryption, initRepository } from '../../src/repository/keys/unlock.ts'
import { openRepositoryOn, type Repository } from '../../src/repository/repository.ts'
import { newConfig } from '../../src/repository/repository-config.ts'
import { MemoryBackend } from './memory-backend.ts'

export interface MemoryRepository extends AsyncDisposable {
  readonly backend: MemoryBackend
  readonly repository: Repository
  /** As another process would: nothing is known that is not stored. */
  openAgain(): Promise<Repository>
}

export async function openMemoryRepository(
  chunkSizeBytes: number,
  encryption: Encryption = 'none',
): Promise<MemoryRepository> {
  const backend = new MemoryBackend()
  await initRepository(backend, newConfig(chunkSizeBytes), encryption, () => new Date('2026-11-22T01:02:03Z'))
  const openAgain = () => openRepositoryOn(backend, encryption === 'none' ? {} : { unlock: keyOf(encryption) })
  const repository = await openAgain()
  return { backend, repository, openAgain, [Symbol.asyncDispose]: () => repository[Symbol.asyncDispose]() }
}

const keyOf = (choice: Exclude<Encryption, 'none'>) =>
  'keyFile' in choice ? { keyFile: choice.keyFile } : { passphrase: async () => choice.passphrase }
