/**
 * A real S3 store for the tests, made and ended by scripts/radosgw: Ceph's radosgw with its objects in memory.
 */
import { execFile, spawnSync } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'

const script = join(import.meta.dirname, '../../scripts/radosgw')
const isDebian = spawnSync('dpkg', ['--print-architecture'], { encoding: 'utf8' }).stdout?.trim() === 'amd64'
export const skipRadosgw = process.getuid?.() === 0 && isDebian ? false : 'not here: root on Debian amd64'

export interface Radosgw extends AsyncDisposable {
  readonly endpoint: string
  makeBucket(name: string): Promise<void>
  /** Runs radosgw-admin. */
  admin(...words: string[]): Promise<void>
}

/**
 * Starts one, and puts its credentials into the environment of this process, where the SDK looks for them. Disposal ends
 * it; what it stored is gone.
 */
export async function startRadosgw(): Promise<Radosgw> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-rgw-'))
  const run = (...words: string[]) => promisify(execFile)(script, words, { timeout: 240_000, maxBuffer: 1 << 24 })
  const { stdout } = await run('start', directory)
  const told = new Map(
    stdout.split('\n').map((line) => [line.split('=', 1)[0] ?? '', line.slice(line.indexOf('=') + 1)]),
  )
  const value = (name: string) => told.get(name) ?? ''
  process.env.AWS_ACCESS_KEY_ID = value('AWS_ACCESS_KEY_ID')
  process.env.AWS_SECRET_ACCESS_KEY = value('AWS_SECRET_ACCESS_KEY')
  const endpoint = value('AWS_ENDPOINT_URL')
  const client = new S3Client({ endpoint, region: 'us-east-1', forcePathStyle: true })
  return {
    endpoint,
    async makeBucket(name) {
      await client.send(new CreateBucketCommand({ Bucket: name }))
    },
    async admin(...words) {
      await run('admin', directory, ...words)
    },
    async [Symbol.asyncDispose]() {
      client.destroy()
      await run('stop', directory)
      await rm(directory, { recursive: true, force: true })
    },
  }
}
