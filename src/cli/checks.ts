/**
 * What `umbra doctor` looks at, one function per check. A check never throws, never hangs and changes nothing.
 */
import { access, constants, readdir, readFile, stat, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describeError, Failure } from '../base/failure.ts'
import { isAtWork } from '../base/process-mark.ts'
import { runCommand } from '../base/run-command.ts'
import { openHypervisor } from '../compose.ts'
import type { Configuration } from '../config.ts'
import { hardwareVirtualisation } from '../libvirt/hardware-virtualisation.ts'
import { helperVmIsBuilt } from '../libvirt/helper-vm-images.ts'
import { openRepository } from '../repository/repository.ts'
import { isS3Location } from '../repository/storage/s3-address.ts'
import { readJournal } from '../requester/journal.ts'
import { journalDirectory } from '../requester/session.ts'
import { bytesText, countText, oneLine, timeText } from './output.ts'
import { namedUnlock } from './passphrase.ts'

export interface Finding {
  readonly check: string
  /** `attention`: Umbra works, but somebody should know. */
  readonly status: 'ok' | 'attention' | 'failed'
  readonly detail: string
  readonly hint?: string
}

const ok = (check: string, detail: string): Finding => ({ check, status: 'ok', detail })
const attention = (check: string, detail: string): Finding => ({ check, status: 'attention', detail })
const failed = (check: string, error: unknown): Finding => ({
  check,
  status: 'failed',
  detail: oneLine(error instanceof Failure ? error.message : describeError(error)),
  ...(error instanceof Failure && error.hint !== undefined ? { hint: error.hint } : {}),
})

export async function runChecks(settings: Configuration): Promise<readonly Finding[]> {
  const findings = await Promise.all([
    [checkNode()],
    [ok('configuration', settings.file ?? 'no file; flags, variables and defaults')],
    checkLibvirt(settings),
    Promise.all(tools.map(checkTool)),
    [await checkVirtualisation()],
    [await checkHelperVm()],
    [await checkState(settings)],
    [await checkRepository(settings)],
    checkSessions(settings),
  ])
  return findings.flat()
}

const neededNode = [24, 15] as const

function checkNode(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const enough = major > neededNode[0] || (major === neededNode[0] && minor >= neededNode[1])
  const told = `${process.versions.node} (${process.execPath})`
  return enough
    ? ok('Node.js', told)
    : failed('Node.js', new Error(`${told}: ${neededNode.join('.')} or newer is needed`))
}

async function checkLibvirt(settings: Configuration): Promise<Finding[]> {
  try {
    await using hypervisor = await openHypervisor(settings)
    const { hypervisor: driver, version, libraryVersion, hostname } = await hypervisor.about()
    const vms = await hypervisor.listVms()
    const running = vms.filter(({ power }) => power === 'running').length
    return [
      ok('libvirt', `${libraryVersion} with ${driver} ${version} on ${hostname}, at ${hypervisor.uri}`),
      ok('VMs', vms.length === 0 ? 'none' : `${vms.length}, ${running} of them running`),
    ]
  } catch (error) {
    return [failed('libvirt', error)]
  }
}

const tools = ['qemu-storage-daemon', 'qemu-img', 'setpriv']
const toolDeadlineMs = 10_000

async function checkTool(tool: string): Promise<Finding> {
  try {
    const { stdout } = await runCommand(tool, ['--version'], { deadlineMs: toolDeadlineMs })
    return ok(tool, oneLine(stdout.split('\n')[0] ?? ''))
  } catch (error) {
    return { ...failed(tool, error), hint: `Install the package that has ${tool}.` }
  }
}

async function checkVirtualisation(): Promise<Finding> {
  const { found, why } = await hardwareVirtualisation()
  return (found === 'usable' ? ok : attention)('virtualisation', `${found}: ${why}`)
}

async function checkHelperVm(): Promise<Finding> {
  const check = 'helper VM'
  if (await helperVmIsBuilt()) return ok(check, 'built')
  const what = 'not built yet: the first backup that rolls copies back on the host builds it from Debian packages'
  return { ...attention(check, what), hint: 'Run helper-vm/build.' }
}

/** A socket's path has 107 bytes at most, and lies two levels below. */
const longestState = 107 - '/s/nbd-00000000.sock'.length

async function checkState({ stateDirectory }: Configuration): Promise<Finding> {
  const check = 'state directory'
  try {
    if (Buffer.byteLength(stateDirectory) > longestState) {
      throw new Error(`${stateDirectory} is longer than ${longestState} bytes: sockets in it can not be used`)
    }
    const there = await nearestExisting(stateDirectory)
    await access(there, constants.W_OK | constants.X_OK)
    const { bavail, bsize } = await statfs(there)
    const free = `${bytesText(bavail * bsize)} free`
    return ok(check, there === stateDirectory ? `${there}, ${free}` : `${stateDirectory} will be made, ${free}`)
  } catch (error) {
    return { ...failed(check, error), hint: 'Name another one with --state, or run as root.' }
  }
}

async function nearestExisting(path: string): Promise<string> {
  try {
    const found = await stat(path)
    if (!found.isDirectory()) throw new Error(`${path} is not a directory`)
    return path
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || path === '/') throw error
    return nearestExisting(dirname(path))
  }
}

async function checkRepository(settings: Configuration): Promise<Finding> {
  const { repository: directory } = settings
  const check = 'repository'
  if (directory === undefined) return attention(check, 'none is named: use --repository, or the configuration file')
  try {
    await using repository = await openRepository(directory, { unlock: namedUnlock(settings) })
    const points = await repository.listPoints()
    const damaged = await repository.listDamagedPoints()
    const indexes = await repository.listDamagedIndexes()
    const newest = points.at(-1)
    const parts = [
      countText(points.length, 'recovery point'),
      ...(newest === undefined ? [] : [`the newest of ${timeText(newest.createdAt)}`]),
      ...(isS3Location(directory) ? [] : await roomIn(directory)),
    ]
    const told = `${directory}: ${parts.join(', ')}`
    if (damaged.length > 0) {
      return failed(check, new Error(`${told}; can not be read: ${damaged.map(({ id }) => id).join(', ')}`))
    }
    if (indexes.length > 0) {
      const spoiled = `${told}; ${countText(indexes.length, 'index object')} can not be read`
      return { ...attention(check, spoiled), hint: 'Run umbra repository repair-index.' }
    }
    return ok(check, told)
  } catch (error) {
    const absent = error instanceof Failure && error.code === 'REPOSITORY_NOT_FOUND'
    if (absent) {
      return { ...attention(check, `${directory} is not there yet`), hint: 'Make it with umbra repository create.' }
    }
    const locked = error instanceof Failure && error.code === 'REPOSITORY_LOCKED'
    return { ...failed(check, error), ...(locked ? { status: 'attention' as const } : {}) }
  }
}

async function roomIn(directory: string): Promise<string[]> {
  const { bavail, bsize } = await statfs(directory)
  return [`${bytesText(await sizeOf(directory))} used`, `${bytesText(bavail * bsize)} free`]
}

async function sizeOf(directory: string): Promise<number> {
  let bytes = 0
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    bytes += (await stat(join(entry.parentPath, entry.name)).catch(() => ({ size: 0 }))).size // gone meanwhile
  }
  return bytes
}

async function checkSessions({ stateDirectory }: Configuration): Promise<Finding[]> {
  const directory = journalDirectory(stateDirectory)
  const names = (await readdir(directory).catch(() => [])).filter((name) => name.endsWith('.jsonl'))
  const findings = await Promise.all(names.map((name) => checkJournal(join(directory, name))))
  const told = findings.filter((finding) => finding !== undefined)
  return told.length > 0 ? told : [ok('sessions', 'none was interrupted')]
}

async function checkJournal(path: string): Promise<Finding | undefined> {
  const check = 'sessions'
  try {
    const { header, left } = readJournal(await readFile(path, 'utf8'))
    const begun = `a ${header.what} begun ${header.startedAt}`
    if (await isAtWork(header.process)) return ok(check, `${begun} is under way`)
    const steps = countText(left.length, 'step')
    return { ...attention(check, `${begun} was interrupted, ${steps} to undo`), hint: 'Run umbra recover.' }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined // has just ended
    return failed(check, new Error(`${path} can not be read: ${describeError(error)}`))
  }
}
