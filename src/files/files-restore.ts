/**
 * The restore of a directory: its plan, and what the writer does before and after the files take their place. The former
 * directory stands aside until PostRestore has succeeded (law 9); until then one undo record brings it back.
 */
import { randomBytes } from 'node:crypto'
import { lstat, readFile, realpath, rename } from 'node:fs/promises'
import { basename, dirname, isAbsolute, join, normalize } from 'node:path'
import { z } from 'zod'
import type { UndoStep } from '../base/cleanup.ts'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentRef } from '../vss/components.ts'
import type { ComponentRestorePlan, RestorePlanner, RestoreRequest, StoredComponent } from '../vss/restore-plan.ts'
import type { FileRestoreStatus } from '../vss/vocabulary.ts'
import type { RestoreSession } from '../vss/writer.ts'

/** What the writer stored, read as something that comes from outside. */
const storedFiles = z.object({
  name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/),
  directory: z.string().refine((path) => isAbsolute(path) && normalize(path) === path && path !== '/'),
})

interface Planned {
  readonly name: string
  readonly path: string
  readonly staged: string
  /** Where the former directory goes, if there is one. */
  readonly aside?: string
  step?: UndoStep
}

const stream = 'disks/files'

export class FilesRestore implements RestorePlanner {
  readonly #planned = new Map<string, Planned>()

  async planRestore(stored: StoredComponent, request: RestoreRequest): Promise<ComponentRestorePlan> {
    const parsed = storedFiles.safeParse(stored.metadata)
    if (!parsed.success) {
      throw failure('VSS_INVALID_XML_DOCUMENT', { document: 'backup-components.xml', reason: parsed.error.message })
    }
    const { name, directory } = parsed.data
    const sizeBytes = stored.streams[stream]
    const path = request.to === undefined ? directory : join(request.to, name)
    const former = await kindOf(path)
    const token = randomBytes(4).toString('hex')
    const staged = `${path}.umbra-new-${token}`
    const aside = former === 'absent' ? undefined : `${path}.umbra-old-${token}`
    const obstacles = await obstaclesOf({ name, path, former, request })
    if (sizeBytes === undefined) obstacles.push('the recovery point has no files of it')
    this.#planned.set(stored.component.name, { name, path, staged, ...(aside === undefined ? {} : { aside }) })
    return {
      component: stored.component,
      caption: name,
      targets: [{ source: { stream, sizeBytes: sizeBytes ?? 0 }, staged, path, format: 'tree' }],
      steps: [
        `write all files to ${staged} and verify them`,
        ...(aside === undefined ? [] : [`set ${path} aside as ${aside}`]),
        `put the files into place: ${path}`,
        ...(aside === undefined ? [] : ['remove what was set aside']),
      ],
      warnings: [
        ...(aside === undefined ? [] : ['stop the application first: it would go on with the files it has open']),
        'extended attributes and access control lists were not kept',
      ],
      obstacles,
    }
  }

  /** The staged tree is known by its inode, so that an undo, perhaps much later, removes nothing else. */
  async preRestore(component: ComponentRef, { undo, emit }: RestoreSession): Promise<void> {
    const planned = this.#of(component)
    const { name, path, staged, aside } = planned
    const { ino } = await lstat(staged, { bigint: true })
    planned.step = await undo.defer({ undo: 'take-back-files', name, path, aside: aside ?? null, inode: String(ino) })
    if (aside !== undefined) {
      await rename(path, aside)
      emit({ event: 'Files', vm: name, detail: `${path} set aside` })
    } else if ((await kindOf(path)) !== 'absent') {
      throw failure('FILES_NOT_COPIED', { path, reason: 'it has appeared meanwhile' })
    }
  }

  async postRestore(component: ComponentRef, status: FileRestoreStatus, { undo, emit }: RestoreSession): Promise<void> {
    const { name, path, aside, step } = this.#of(component)
    invariant(step !== undefined, 'PreRestore comes before PostRestore')
    if (status !== 'all') {
      await undo.run(step)
      throw failure('FILES_NOT_COPIED', { path, reason: `not all of its files were restored (${status})` })
    }
    emit({ event: 'Files', vm: name, detail: `${path} is restored` })
    if (aside === undefined) undo.forget(step)
    else await undo.supersede(step, { undo: 'remove-trees', paths: [aside] })
  }

  #of({ name }: ComponentRef): Planned {
    const planned = this.#planned.get(name)
    invariant(planned !== undefined, `no restore was planned for ${name}`)
    return planned
  }
}

interface Intended {
  readonly name: string
  readonly path: string
  readonly former: 'absent' | 'directory' | 'other'
  readonly request: RestoreRequest
}

async function obstaclesOf({ path, former, request }: Intended): Promise<string[]> {
  const obstacles: string[] = []
  if (request.as !== undefined) obstacles.push('files can not be restored under another name: use --to')
  if (request.to !== undefined && former !== 'absent') obstacles.push(`${path} exists already: choose another --to`)
  if (former === 'other') obstacles.push(`${path} is not a directory and can not be set aside: use --to`)
  if (former !== 'directory') return obstacles
  const mounts = await mountedIn(path)
  if (mounts.length > 0) obstacles.push(`${mounts.join(', ')} is mounted, so ${path} can not be set aside: use --to`)
  return obstacles
}

async function kindOf(path: string): Promise<Intended['former']> {
  try {
    return (await lstat(path)).isDirectory() ? 'directory' : 'other'
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'absent'
    throw error
  }
}

/** Mount points at or below a directory. Source: proc(5), mountinfo, whose fifth field has octal escapes. */
async function mountedIn(path: string): Promise<string[]> {
  const real = join(await realpath(dirname(path)), basename(path))
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')
  const points = lines.map((line) =>
    (line.split(' ')[4] ?? '').replace(/\\([0-7]{3})/g, (_, code: string) =>
      String.fromCharCode(Number.parseInt(code, 8)),
    ),
  )
  return points.filter((point) => point === real || point.startsWith(`${real}/`))
}
