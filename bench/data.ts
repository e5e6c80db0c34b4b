/**
 * The benchmark's disk: 4 GiB, one ext4 with the files of a Debian (this host's /usr, up to a limit), 512 MiB of random
 * bytes and 256 MiB of log text; about half of it allocated. Made once, kept in the bench directory.
 */
import { execFileSync } from 'node:child_process'
import { createCipheriv } from 'node:crypto'
import { existsSync } from 'node:fs'
import { copyFile, link, lstat, mkdir, open, readdir, rename, rm, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'

const mebibyte = 1024 * 1024
const limits = {
  diskBytes: 4096 * mebibyte,
  systemBytes: 1150 * mebibyte,
  randomBytes: 512 * mebibyte,
  textBytes: 256 * mebibyte,
}

export interface BenchData {
  readonly raw: string
  readonly sizeBytes: number
  readonly allocatedBytes: number
}

export async function makeData(directory: string, tell: (line: string) => void): Promise<BenchData> {
  const raw = join(directory, 'disk.raw')
  if (!existsSync(raw)) {
    tell(`making the disk in ${directory}`)
    const { bavail, bsize } = await statfs(directory)
    if (bavail * bsize < 20 * 1024 * mebibyte) throw new Error(`${directory} needs 20 GiB of free space`)
    const tree = join(directory, 'tree')
    await rm(tree, { recursive: true, force: true })
    await gatherSystem('/usr', join(tree, 'usr'))
    await writeRandom(join(tree, 'random.bin'))
    await writeText(join(tree, 'access.log'))
    const making = `${raw}.making`
    execFileSync('truncate', ['-s', String(limits.diskBytes), making])
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', tree, making])
    await rm(tree, { recursive: true })
    await rename(making, raw)
  }
  const { size, blocks } = await lstat(raw)
  return { raw, sizeBytes: size, allocatedBytes: blocks * 512 }
}

/** Regular files in a fixed order until the limit is reached; hard links where the file system allows. */
async function gatherSystem(from: string, to: string): Promise<void> {
  const entries = await readdir(from, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
  // Spread over the whole tree, so that no single package makes up the sample.
  files.sort((a, b) => order(a) - order(b) || a.localeCompare(b))
  let gathered = 0
  for (const file of files) {
    const { size } = await lstat(file)
    if (size > 64 * mebibyte) continue
    if (gathered + size > limits.systemBytes) break
    gathered += size
    const place = join(to, file.slice(from.length))
    await mkdir(dirname(place), { recursive: true })
    await link(file, place).catch(() => copyFile(file, place))
  }
}

function order(path: string): number {
  let hash = 2166136261
  for (const character of path) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619)
  return hash >>> 0
}

/** A key stream: incompressible and always the same. */
async function writeRandom(path: string): Promise<void> {
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), Buffer.alloc(16))
  const zeros = Buffer.alloc(mebibyte)
  await using file = await open(path, 'w')
  for (let written = 0; written < limits.randomBytes; written += mebibyte) await file.write(cipher.update(zeros))
}

/** Lines of a web server's log, about 5:1 under zstd. */
async function writeText(path: string): Promise<void> {
  const paths = ['users', 'orders', 'items', 'search', 'login'].flatMap((a) =>
    ['list', 'get', 'put', 'stat'].map((b) => `/api/${a}/${b}`),
  )
  let seed = 42
  const next = (below: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    return seed % below
  }
  await using file = await open(path, 'w')
  for (let written = 0, at = 1_700_000_000_000; written < limits.textBytes; ) {
    const lines = Array.from({ length: 5000 }, () => {
      at += next(400)
      return `10.${next(8)}.${next(256)}.${next(256)} - - [${at}] "GET ${paths[next(paths.length)]}?id=${next(2 ** 31).toString(16)} HTTP/1.1" ${[200, 200, 200, 304, 404][next(5)]} ${next(65536)} "-" rt=0.${next(1000)}\n`
    })
    const text = Buffer.from(lines.join(''))
    await file.write(text)
    written += text.length
  }
}
