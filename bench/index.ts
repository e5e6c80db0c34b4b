/**
 * What the index of a large repository costs: memory over an empty repository's, time to load, rate of lookups.
 * The repositories have index objects only, as a writer of 512 KiB chunks leaves them for 1 TiB of different data that does
 * not compress (the most packs there can be). `bench/index [BACKUPS...]`: by how many backups they were written.
 * `bench/index child DIRECTORY` is the process that is measured.
 */
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { indexGroups } from '../src/repository/chunks/index-writer.ts'
import { KnownChunks } from '../src/repository/chunks/known-chunks.ts'
import { encodeIndex, encodeTocEntry, objectKeys, type PackListing, recordKinds } from '../src/repository/format.ts'
import { plainSeal } from '../src/repository/keys/seal.ts'
import { openLocalBackend } from '../src/repository/storage/local-backend.ts'

const mebibyte = 1024 * 1024
const chunkBytes = 512 * 1024
const recordsPerPack = 31
const recordCount = 1024 ** 4 / chunkBytes
const lookups = 1_000_000
const processes = 7
/** As bin/umbra starts Node.js. */
const asUmbra = '--max-semi-space-size=4'

interface Measured {
  readonly residentBytes: number
  readonly peakBytes: number
  readonly loadMs: number
  readonly refreshMs: number
  readonly lookupsPerSecond: number
  readonly chunks: number
}

/** Chunk `number` of the repository: the same in the process that measures. */
function idOf(number: number): Buffer {
  return createHash('sha256').update(String(number)).digest()
}

function makePack(pointId: string, first: number, count: number): PackListing {
  const entry = {
    kind: recordKinds.chunk,
    encoding: 0 as const,
    encrypted: false,
    storedBytes: chunkBytes,
    plainBytes: chunkBytes,
  }
  const lines = Array.from({ length: count }, (_, at) =>
    encodeTocEntry({ ...entry, id: idOf(first + at), offset: 40 + at * (chunkBytes + 56) }),
  )
  return { pointId, digest: randomBytes(32), sizeBytes: 16 * mebibyte, toc: Buffer.concat(lines) }
}

/** `points` backups; the first holds half of the data, the others share the rest. */
async function makeRepository(directory: string, points: number): Promise<void> {
  await using backend = openLocalBackend(directory)
  let next = 0
  for (let point = 0; point < points; point += 1) {
    const pointId = `${String(20240101 + point).padStart(8, '0')}T000000Z-aaaa`
    const share = points === 1 ? recordCount : point === 0 ? recordCount / 2 : recordCount / 2 / (points - 1)
    const end = point === points - 1 ? recordCount : Math.min(recordCount, Math.round(next + share))
    let packs: PackListing[] = []
    const put = async () => {
      for (const some of indexGroups(packs)) {
        const { parts, digest } = encodeIndex(plainSeal, some)
        await backend.put(objectKeys.index(pointId, digest), parts)
      }
      packs = []
    }
    for (; next < end; next += recordsPerPack) {
      packs.push(makePack(pointId, next, Math.min(recordsPerPack, end - next)))
      if (packs.length === 1024) await put()
    }
    next = end
    await put()
  }
}

async function measure(directory: string): Promise<Measured> {
  await using backend = openLocalBackend(directory)
  const known = new KnownChunks(backend, plainSeal, chunkBytes)
  const begun = performance.now()
  await known.refresh()
  const loadMs = performance.now() - begun
  const again = performance.now()
  await known.refresh()
  const refreshMs = performance.now() - again
  // Of the process as it is: no collection is asked for.
  const residentBytes = process.memoryUsage.rss()
  const peakBytes = process.resourceUsage().maxRSS * 1024
  const chunks = known.table.size
  const ids = Array.from({ length: 1000 }, (_, at) => idOf(at * 1999))
  const lookupBegun = performance.now()
  let found = 0
  for (let turn = 0; turn < lookups / ids.length; turn += 1) for (const id of ids) if (known.usable(id)) found += 1
  if (chunks > 0 && found !== lookups) throw new Error('a chunk was not found')
  return {
    residentBytes,
    peakBytes,
    loadMs,
    refreshMs,
    lookupsPerSecond: lookups / ((performance.now() - lookupBegun) / 1000),
    chunks,
  }
}

/** The median of some processes: what V8 gives its young generation differs from one to the next by some MiB. */
function measureInProcesses(directory: string): Measured {
  const all = Array.from({ length: processes }, () => {
    const output = execFileSync(process.execPath, [asUmbra, import.meta.filename, 'child', directory], {
      encoding: 'utf8',
    })
    return JSON.parse(output) as Measured
  })
  all.sort((one, other) => one.peakBytes - other.peakBytes)
  return all[Math.floor(processes / 2)] as Measured
}

async function main(): Promise<void> {
  const [command, directory] = process.argv.slice(2)
  const backups = process.argv
    .slice(2)
    .map(Number)
    .filter((count) => count > 0)
  if (command === 'child' && directory !== undefined) {
    process.stdout.write(JSON.stringify(await measure(directory)))
    return
  }
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-bench-index-'))
  try {
    const empty = measureInProcesses(await mkdtemp(path.join(folder, 'empty-')))
    for (const points of backups.length > 0 ? backups : [1, 365]) {
      const place = await mkdtemp(path.join(folder, 'repository-'))
      await makeRepository(place, points)
      const full = measureInProcesses(place)
      const mib = (bytes: number) => (bytes / mebibyte).toFixed(1)
      const cells = [
        `${points} backups, ${full.chunks} chunks: resident ${mib(full.residentBytes - empty.residentBytes)} MiB`,
        `peak ${mib(full.peakBytes - empty.peakBytes)} MiB over an empty repository's`,
        `loaded in ${(full.loadMs / 1000).toFixed(2)} s, looked at again in ${full.refreshMs.toFixed(0)} ms`,
        `${(full.lookupsPerSecond / 1e6).toFixed(1)} M lookups a second`,
      ]
      console.log(cells.join(', '))
      await rm(place, { recursive: true })
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

await main()
