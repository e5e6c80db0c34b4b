/**
 * Records of instant restores: STATE/instant/NAME.json, one for each VM that runs from a recovery point, written before
 * anything is done and removed last. Read as something from outside (S2).
 */
import { open, readdir, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import * as z from 'zod'
import { makeDirectory } from '../base/make-directory.ts'
import { failure } from '../errors.ts'

const path = z.string().startsWith('/')
const shape = z.object({
  version: z.literal(1),
  name: z.string().min(1),
  uuid: z.string().regex(/^[0-9a-f-]{36}$/),
  /** The hypervisor's address. */
  uri: z.string(),
  repository: z.string().min(1),
  point: z.string().min(1),
  /** The component in the recovery point: the UUID of the VM that was backed up. */
  component: z.string().min(1),
  /** Names the sockets and processes of this one: 8 hexadecimal digits. */
  token: z.string().regex(/^[0-9a-f]{8}$/),
  startedAt: z.string(),
  /** `preparing`: the VM has not been started yet; `finishing`: its disks are being pulled in. */
  stage: z.enum(['preparing', 'running', 'finishing']),
  disks: z.array(z.object({ target: z.string().min(1), stream: z.string().min(1), overlay: path, sizeBytes: z.int() })),
  /** Small files that were made for it. */
  files: z.array(path),
})
export type InstantRecord = z.infer<typeof shape>

export const instantDirectory = (stateDirectory: string): string => join(stateDirectory, 'instant')

/** Sockets and process files of a record. Short, because the path of a socket is. */
export interface InstantPlaces {
  readonly serverSocketPath: string
  readonly serverPidFile: string
  readonly gateSocketPath: string
  readonly gatePidFile: string
  /** Reads that failed, one JSON line for each; see instant-failures.ts. */
  readonly failures: string
}

export const socketsOf = (stateDirectory: string): string => join(stateDirectory, 'i')

export function placesOf(stateDirectory: string, { token }: Pick<InstantRecord, 'token'>): InstantPlaces {
  const inSockets = (name: string) => join(socketsOf(stateDirectory), `${token}.${name}`)
  return {
    serverSocketPath: inSockets('s'),
    serverPidFile: inSockets('s.pid'),
    gateSocketPath: inSockets('g'),
    gatePidFile: inSockets('g.pid'),
    failures: inSockets('failures'),
  }
}

/** A name that can not leave the directory, whatever the VM is called. */
const fileOf = (stateDirectory: string, name: string) =>
  join(instantDirectory(stateDirectory), `${encodeURIComponent(name).replaceAll('.', '%2E')}.json`)

/** On stable storage when it resolves. */
export async function writeRecord(stateDirectory: string, record: InstantRecord): Promise<void> {
  const directory = instantDirectory(stateDirectory)
  await makeDirectory(directory, 0o700)
  const place = fileOf(stateDirectory, record.name)
  {
    await using file = await open(`${place}.new`, 'w', 0o600)
    await file.writeFile(`${JSON.stringify(record, null, 2)}\n`)
    await file.sync()
  }
  await rename(`${place}.new`, place)
  await using folder = await open(directory)
  await folder.sync()
}

export async function forgetRecord(stateDirectory: string, { name }: InstantRecord): Promise<void> {
  await rm(fileOf(stateDirectory, name), { force: true })
}

/** INSTANT_NOT_FOUND names those there are. */
export async function readRecord(stateDirectory: string, name: string): Promise<InstantRecord> {
  const found = await findRecord(stateDirectory, name)
  if (found !== undefined) return found
  const known = (await listRecords(stateDirectory)).records.map((record) => record.name)
  throw failure('INSTANT_NOT_FOUND', { vm: name, known: known.length === 0 ? ['none'] : known })
}

export async function findRecord(stateDirectory: string, name: string): Promise<InstantRecord | undefined> {
  const file = fileOf(stateDirectory, name)
  return await read(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
}

async function read(file: string): Promise<InstantRecord> {
  const text = await readFile(file, 'utf8')
  try {
    return shape.parse(JSON.parse(text))
  } catch (error) {
    throw failure('INSTANT_RECORD_INVALID', { path: file }, error)
  }
}

/** All of them, by name; `unreadable` are paths. */
export async function listRecords(stateDirectory: string): Promise<{ records: InstantRecord[]; unreadable: string[] }> {
  const directory = instantDirectory(stateDirectory)
  const names = (await readdir(directory).catch(() => [])).filter((name) => name.endsWith('.json')).sort()
  const records: InstantRecord[] = []
  const unreadable: string[] = []
  for (const name of names) {
    const record = await read(join(directory, name)).catch(() => undefined)
    if (record === undefined) unreadable.push(join(directory, name))
    else records.push(record)
  }
  return { records, unreadable }
}
