/**
 * What the user settled once: flag over environment variable over configuration file over default. docs/cli.md has the
 * table. Unknown keys are refused by name, because a misspelt limit that is silently ignored is a limit that is not there.
 */
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, isAbsolute, join, resolve } from 'node:path'
import * as z from 'zod'
import { ageForm, parseAge } from './base/age.ts'
import { failure } from './errors.ts'
import { type Profile, profiles } from './vm/profile.ts'
import { defaultLimits, type SessionLimits } from './vss/vocabulary.ts'

export const defaultConfigurationFile = '/etc/umbra/umbra.yaml'

/** As typed on the command line. */
export interface ConfigurationFlags {
  readonly connect?: string | undefined
  readonly repository?: string | undefined
  readonly passphraseFile?: string | undefined
  readonly keyFile?: string | undefined
  readonly state?: string | undefined
  readonly config?: string | undefined
}

/** The key of the repository as it was named. A passphrase itself stands in no value, so that nothing can print it. */
export type NamedKey =
  | { readonly passphraseFile: string }
  | { readonly keyFile: string }
  | { readonly passphrase: () => string }

export interface Configuration {
  /** Address of libvirt; undefined for the system's, else the private one. */
  readonly connect?: string
  /** Absolute. */
  readonly repository?: string
  /** Opens the repository, if it is encrypted; the key of one that is made. */
  readonly key?: NamedKey
  /** Absolute. */
  readonly stateDirectory: string
  /** Where scratch files of backup jobs go; missing for a directory in the state directory. */
  readonly scratchDirectory?: string
  readonly limits: Partial<SessionLimits>
  /** For verbs that are not told another. */
  readonly profile?: Profile
  /** Directories of this host that can be backed up; missing when none is named. */
  readonly files?: readonly ConfiguredFiles[]
  /** The largest tree that is copied while writes are held; missing for the default. */
  readonly filesCopyLimitBytes?: number
  /** What umbra retention keeps when its options say nothing; missing when there are no rules. */
  readonly retention?: readonly ConfiguredRetention[]
  /** The file that was read. */
  readonly file?: string
}

/** How long a hook may take to freeze. */
const defaultFilesFreezeMs = 10_000

/** Limits may be lowered, never raised above what VSS allows. */
const limit = (mostMs: number) => z.int().min(1).max(mostMs)

/** A path that is what it says: no `..`, no doubled slash, and not the whole host. */
const absolute = z
  .string()
  .refine((path) => isAbsolute(path) && resolve(path) === path && path !== '/', 'it must be an absolute path')
/** Names share one space with the UUIDs of VMs, and stand in names of files. */
const filesName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'it must be letters, digits, dots, dashes and underscores')
  .refine((name) => !/^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i.test(name), 'it looks like the UUID of a VM')

const filesShape = z.strictObject({
  name: filesName,
  directory: absolute,
  hook: absolute,
  freezeMs: limit(defaultLimits.freezeMs).default(defaultFilesFreezeMs),
  exclude: z.array(z.string().min(1)).default([]),
})
export type ConfiguredFiles = z.infer<typeof filesShape>

const kept = z.int().min(0).max(100_000).optional()

const retentionShape = z.strictObject({
  vms: z.array(z.string().min(1)).min(1).default(['*']),
  keepLast: kept,
  keepHourly: kept,
  keepDaily: kept,
  keepWeekly: kept,
  keepMonthly: kept,
  keepYearly: kept,
  keepWithin: z
    .string()
    .refine((text) => parseAge(text) !== undefined, `it must be ${ageForm}`)
    .optional(),
})

/** A rule of retention: see repository/retention.ts. */
export interface ConfiguredRetention extends Omit<z.infer<typeof retentionShape>, 'keepWithin'> {
  readonly keepWithinMs?: number | undefined
}

const fileShape = z.strictObject({
  connect: z.string().min(1).optional(),
  repository: z.string().min(1).optional(),
  'passphrase-file': z.string().min(1).optional(),
  'key-file': z.string().min(1).optional(),
  state: z.string().min(1).optional(),
  scratch: absolute.optional(),
  /** 2008 is a number to YAML. */
  profile: z.preprocess((told) => (typeof told === 'number' ? String(told) : told), z.enum(profiles).optional()),
  limits: z
    .strictObject({
      freezeMs: limit(defaultLimits.freezeMs).optional(),
      holdWritesMs: limit(defaultLimits.holdWritesMs).optional(),
      prepareMs: limit(defaultLimits.prepareMs).optional(),
    })
    .optional(),
  files: z
    .array(filesShape)
    .refine((all) => new Set(all.map(({ name }) => name.toLowerCase())).size === all.length, 'two have the same name')
    .optional(),
  filesCopyLimitBytes: z.int().min(1).optional(),
  retention: z.array(retentionShape).min(1).optional(),
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
  const isAddress = (path: string) => /^s3:\/\//i.test(path)
  const from = (folder: string, path: string | undefined) =>
    path === undefined || isAddress(path) ? path : resolve(folder, path)
  const beside = (path: string | undefined) => from(dirname(file), path)
  const here = (path: string | undefined) => from('.', path)

  const connect = flags.connect ?? variable('UMBRA_CONNECT') ?? content?.connect
  const repository = here(flags.repository ?? variable('UMBRA_REPOSITORY')) ?? beside(content?.repository)
  const state = here(flags.state ?? variable('UMBRA_STATE')) ?? beside(content?.state)
  const key =
    namedKey('on the command line', here(flags.passphraseFile), here(flags.keyFile)) ??
    namedKey(
      'in the environment',
      here(variable('UMBRA_PASSPHRASE_FILE')),
      here(variable('UMBRA_KEY_FILE')),
      variable('UMBRA_PASSPHRASE'),
    ) ??
    namedKey(`in ${file}`, beside(content?.['passphrase-file']), beside(content?.['key-file']))
  return {
    ...(connect === undefined ? {} : { connect }),
    ...(key === undefined ? {} : { key }),
    ...(repository === undefined ? {} : { repository }),
    stateDirectory: state ?? defaultStateDirectory(environment, isRoot),
    ...(content?.scratch === undefined ? {} : { scratchDirectory: content.scratch }),
    limits: withoutUndefined(content?.limits ?? {}),
    ...(content?.files === undefined ? {} : { files: content.files }),
    ...(content?.filesCopyLimitBytes === undefined ? {} : { filesCopyLimitBytes: content.filesCopyLimitBytes }),
    ...(content?.profile === undefined ? {} : { profile: content.profile }),
    ...(content?.retention === undefined ? {} : { retention: content.retention.map(retentionRule) }),
    ...(content === undefined ? {} : { file }),
  }
}

function retentionRule({ keepWithin, ...counts }: z.infer<typeof retentionShape>): ConfiguredRetention {
  return keepWithin === undefined ? counts : { ...counts, keepWithinMs: parseAge(keepWithin) }
}

/** USAGE when one place names several: which one is meant can not be guessed. */
function namedKey(
  where: string,
  passphraseFile: string | undefined,
  keyFile: string | undefined,
  passphrase?: string,
): NamedKey | undefined {
  const named = [passphraseFile, keyFile, passphrase].filter((key) => key !== undefined)
  if (named.length > 1) throw failure('USAGE', { reason: `more than one key is named ${where}: name one` })
  if (passphraseFile !== undefined) return { passphraseFile }
  if (keyFile !== undefined) return { keyFile }
  return passphrase === undefined ? undefined : { passphrase: () => passphrase }
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
  // Takes longer to load than most commands need, and most hosts have no file. Bundled it has a default export only.
  const { default: yaml } = await import('yaml')
  let value: unknown
  try {
    value = yaml.parse(text)
  } catch (error) {
    throw refuse(`it is not YAML: ${(error as Error).message.split('\n')[0]?.replace(/:$/, '')}`)
  }
  const parsed = fileShape.safeParse(value ?? {}) // an empty file is an empty configuration
  if (!parsed.success) throw refuse(parsed.error.issues.map(describeIssue).join('; '))
  return parsed.data
}

const knownKeys: Readonly<Record<string, readonly string[]>> = {
  '': Object.keys(fileShape.shape),
  limits: Object.keys(defaultLimits),
  files: Object.keys(filesShape.shape),
  retention: Object.keys(retentionShape.shape),
}

function describeIssue(issue: z.core.$ZodIssue): string {
  const where = issue.path.join('.')
  if (issue.code !== 'unrecognized_keys') {
    return where === '' ? 'it must be a list of keys and values' : `${where}: ${issue.message}`
  }
  const known = knownKeys[issue.path.filter((part) => typeof part === 'string').join('.')] ?? []
  const keys = issue.keys.map((key) => (where === '' ? key : `${where}.${key}`))
  return `unknown key ${keys.join(', ')}; known are ${known.join(', ')}`
}

/** Leaves out keys without a value, for spreading over defaults. */
function withoutUndefined(limits: NonNullable<FileContent['limits']>): Partial<SessionLimits> {
  return Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined))
}
