/**
 * Makes test/golden/repository-1-encrypted.tar.gz, a tiny encrypted repository of format 1. Run once, with the first release
 * of encryption; its result is committed and never made again: a program that can not read it any more has broken the format.
 *   node test/golden/repository-1-encrypted.make.ts
 */
import { execFileSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createRepository } from '../../src/repository/repository.ts'
import { goldenNoise, writeGoldenPoints } from './repository-1.make.ts'

/** Of a golden repository everybody may know it. Written composed here, and decomposed by the test. */
export const goldenPassphrase = 'golden p\u00e4ssphrase \u2713'
/** The content of the key file that opens it too. */
export const goldenKeyFile = `${goldenNoise(32).toString('hex')}\n`

async function makeGolden(): Promise<void> {
  const home = await mkdtemp(path.join(tmpdir(), 'umbra-golden-'))
  const folder = path.join(home, 'repository')
  const keyFile = path.join(home, 'key')
  await writeFile(keyFile, goldenKeyFile)
  {
    const encryption = { passphrase: goldenPassphrase }
    await using repository = await createRepository(folder, { chunkSizeBytes: 64 * 1024, encryption })
    await repository.keys?.add({ keyFile }, 'golden key file')
    await writeGoldenPoints(repository)
  }
  const archive = path.join(import.meta.dirname, 'repository-1-encrypted.tar.gz')
  const names = ['umbra-repository.json', 'keys', 'points', 'indexes', 'packs']
  execFileSync('tar', ['-C', folder, '--owner=0', '--group=0', '-czf', archive, ...names])
  await rm(home, { recursive: true })
}

if (import.meta.main) await makeGolden()
