/**
 * What the user settled once: flag over environment variable over configuration file over default. docs/cli.md has the
 * table. Unknown keys are refused by name, because a misspelt limit that is silently ignored is a limit that is not there.
 */
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { parse } from 'yaml'
import * as z from 'zod'
import { failure } from './errors.ts'
import { defaultLimits, type SessionLimits } from './vss/vocabulary.ts'

export const defaultConfigurationFile = '/etc/umbra/umbra.yaml'

/** As typed on the command line. */
export interface ConfigurationFlags {
  readonly connect?: string | undefined
  readonly repository?: string | undefined
  readonly state?: string | undefined
  readonly config?: string | undefined
}

export interface Configuration {
  /** Address of libvirt; undefined for the system's, else the private one. */
  readonly connect?: string
  /** Absolute. */
  readonly repository?: string
  /** Absolute. */
  readonly stateDirectory: string
  readonly limits: Partial<SessionLimits>
  /** The file that was read. */
  readonly file?: string
}

/** Limits may be lowered, never raised above what VSS allows. */
const limit = (mostMs: number) => z.int().min(1).max(mostMs)

const fileShape = z.strictObject({
  connect: z.string().min(1).optional(),
  repository: z.string().min(1).optional(),
  state: z.string().min(1).optional(),
  limits: z
    .strictObject({
      freezeMs: limit(defaultLimits.freezeMs).optional(),
      holdWritesMs: limit(defaultLimits.holdWritesMs).optional(),
      prepareMs: limit(defaultLimits.prepareMs).optional(),
    })
    .optional(),
})
type FileContent = z.infer<typeof fileShape>

export interface Surroundings {
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly isRoot: boolean
  readonly defaultFile: string
}

const surroundingsOfProcess = (): Surroundings => ({
  environment: process.env,
  isRoot: process.getuid?.() === 0,
  defaultFile: defaultConfigurationFile,
})

/** CONFIG_INVALID names the file and what is wrong in it. A default file that is not there is none. */
export async function readConfiguration(
  flags: ConfigurationFlags,
  { environment, isRoot, defaultFile }: Surroundings = surroundingsOfProcess(),
): Promise<Configuration> {
  const variable = (name: string) => environment[name] || undefined // an empty variable is none
  const named = flags.config ?? variable('UMBRA_CONFIG')
  const file = resolve(named ?? defaultFile)
  const content = await readFileContent(file, named !== undefined)
  const beside = (path: string | undefined) => (path === undefined ? undefined : resolve(dirname(file), path))
  const here = (path: string | undefined) => (path === undefined ? undefined : resolve(path))

  const connect = flags.connect ?? variable('UMBRA_CONNECT') ?? content?.connect
  const repository = here(flags.repository ?? variable('UMBRA_REPOSITORY')) ?? beside(content?.repository)
  const state = here(flags.state ?? variable('UMBRA_STATE')) ?? beside(content?.state)
  return {
    ...(connect === undefined ? {} : { connect }),
    ...(repository === undefined ? {} : { repository }),
    stateDirectory: state ?? defaultStateDirectory(environment, isRoot),
    limits: withoutUndefined(content?.limits ?? {}),
    ...(content === undefined ? {} : { file }),
  }
}

function defaultStateDirectory(environment: Surroundings['environment'], isRoot: boolean): string {
  if (isRoot) return '/var/lib/umbra'
  return join(environment.XDG_STATE_HOME || join(environment.HOME || homedir(), '.local', 'state'), 'umbra')
}

async function readFileContent(path: string, isNamed: boolean): Promise<FileContent | undefined> {
  const refuse = (reason: string, cause?: unknown) => failure('CONFIG_INVALID', { path, reason }, cause)
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    if (missing && !isNamed) return undefined
    throw refuse(missing ? 'there is no such file' : (error as Error).message)
  }
  let value: unknown
  try {
    value = parse(text)
  } catch (error) {
    throw refuse(`it is not YAML: ${(error as Error).message.split('\n')[0]?.replace(/:$/, '')}`)
  }
  const parsed = fileShape.safeParse(value ?? {}) // an empty file is an empty configuration
  if (!parsed.success) throw refuse(parsed.error.issues.map(describeIssue).join('; '))
  return parsed.data
}

const knownKeys = { '': Object.keys(fileShape.shape), limits: Object.keys(defaultLimits) }

function describeIssue(issue: z.core.$ZodIssue): string {
  const where = issue.path.join('.')
  if (issue.code !== 'unrecognized_keys') {
    return where === '' ? 'it must be a list of keys and values' : `${where}: ${issue.message}`
  }
  const known = knownKeys[where as keyof typeof knownKeys] ?? []
  const keys = issue.keys.map((key) => (where === '' ? key : `${where}.${key}`))
  return `unknown key ${keys.join(', ')}; known are ${known.join(', ')}`
}

/** Leaves out keys without a value, for spreading over defaults. */
function withoutUndefined(limits: NonNullable<FileContent['limits']>): Partial<SessionLimits> {
  return Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined))
}
