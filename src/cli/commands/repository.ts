/**
 * umbra repository: makes one, and manages the keys that open it.
 */
import type { Command } from 'commander'
import { failure } from '../../errors.ts'
import { makeKeyFile } from '../../repository/keys/key-secret.ts'
import { labelMaxLength } from '../../repository/keys/key-slots.ts'
import { createRepository, type KeyRing, type KeySlot, listKeySlots } from '../../repository/repository.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, repositoryDirectory } from '../command.ts'
import { countText, tableText, timeText } from '../output.ts'
import { encryptionOf, type NewKeyOptions, newKeyOf } from '../passphrase.ts'
import { addRepairIndex } from './repair-index.ts'

export function addRepository(program: Command, run: Run): void {
  const repository = program
    .command('repository')
    .summary('make a repository, and manage its keys')
    .description('Makes repositories, and manages the keys that open those that are encrypted. See docs/encryption.md.')
  repository
    .command('create')
    .summary('make a repository')
    .description(
      'Makes a repository in a directory that is missing or empty. Whether it is encrypted is said here and never changes:\n' +
        'name a key (--passphrase-file or --key-file; a terminal asks), or say --no-encryption.',
    )
    .argument('<path>', 'where')
    .option('--no-encryption', 'readable by everybody who can read the place')
    .action((path: string, options: { encryption: boolean }) => run((context) => create(path, options, context)))
  repository
    .command('key-file')
    .summary('make a key file')
    .description('Makes a new key file, readable by its owner only. Whoever loses it loses the data.')
    .argument('<path>', 'a file that is not there')
    .action((path: string) => run(() => keyFile(path)))
  addRepairIndex(repository, run)
  addKeys(repository.command('key').summary('list, add, remove and change keys'), run)
}

function addKeys(key: Command, run: Run): void {
  const newKey = (command: Command) =>
    command
      .option('--new-passphrase-file <file>', 'the new key: a passphrase, in a file')
      .option('--new-key-file <file>', 'the new key: a key file')
  key
    .command('list')
    .summary('the keys that open the repository')
    .action(() => run(list))
  newKey(key.command('add').summary('let another key open the repository'))
    .option('--label <text>', 'what it is for', '')
    .action((options: NewKeyOptions & { label: string }) => run((context) => add(options, context)))
  key
    .command('remove')
    .summary('take a key away')
    .description(
      'Takes a key away. The one that you open the repository with stays. What was copied before stays readable.',
    )
    .argument('<key>', 'as umbra repository key list tells it; its last letters do')
    .action((slot: string) => run((context) => remove(slot, context)))
  newKey(key.command('change').summary('another key in place of the one given')).action((options: NewKeyOptions) =>
    run((context) => change(options, context)),
  )
}

async function create(path: string, options: { encryption: boolean }, { settings }: CommandContext): Promise<Report> {
  const what = 'a repository is encrypted unless you say otherwise'
  const encryption = await encryptionOf(settings, options.encryption, what, true)
  await using repository = await createRepository(path, { encryption })
  const { id, location, keys } = repository
  const told = keys === undefined ? 'not encrypted' : `encrypted; ${warning}`
  return {
    document: { repository: location, id, encrypted: keys !== undefined },
    text: `made the repository ${location}, ${told}`,
  }
}

const warning = 'without its key nobody can read it, you neither'

async function keyFile(path: string): Promise<Report> {
  await makeKeyFile(path)
  return { document: { keyFile: path }, text: `made the key file ${path}; keep a copy of it elsewhere: ${warning}` }
}

async function list({ settings, screen }: CommandContext): Promise<Report> {
  const location = repositoryDirectory(settings)
  const { slots, unreadable } = await listKeySlots(location)
  const columns = ['KEY', 'KIND', 'MADE', 'LABEL'].map((head) => ({ head }))
  const rows = slots.map(({ id, kind, createdAt, label }) => [id, kind, timeText(new Date(createdAt)), label])
  return {
    document: { repository: location, keys: slots.map(slotDocument), unreadable },
    text: [
      slots.length === 0 ? `no key of ${location} can be read` : tableText(columns, rows, screen.width),
      ...unreadable.map(({ id, reason }) => `${id} can not be read: ${reason}`),
    ].join('\n'),
  }
}

/** Neither salt nor wrapped key: they are of use to those only who attack the passphrase. */
function slotDocument({ id, kind, createdAt, label, kdf }: KeySlot) {
  return { id, kind, createdAt, label, kdf: kdf.name }
}

async function add({ label, ...options }: NewKeyOptions & { label: string }, context: CommandContext): Promise<Report> {
  if (label.length > labelMaxLength) {
    throw failure('USAGE', { reason: `a label has at most ${labelMaxLength} characters` })
  }
  return withKeys(context, async (keys) => {
    const slot = await keys.add(await newKeyOf(options), label)
    return { document: { added: slotDocument(slot) }, text: `added the key ${slot.id}` }
  })
}

function remove(typed: string, context: CommandContext): Promise<Report> {
  return withKeys(context, async (keys) => {
    const removed = await keys.remove(typed)
    const left = (await keys.list()).slots.length
    return { document: { removed }, text: `removed the key ${removed}; ${countText(left, 'key')} left` }
  })
}

function change(options: NewKeyOptions, context: CommandContext): Promise<Report> {
  return withKeys(context, async (keys) => {
    const former = keys.openedWith
    const slot = await keys.change(await newKeyOf(options))
    return {
      document: { added: slotDocument(slot), removed: former },
      text: `the key ${slot.id} has taken the place of ${former}`,
    }
  })
}

async function withKeys({ settings }: CommandContext, use: (keys: KeyRing) => Promise<Report>): Promise<Report> {
  await using repository = await openSettledRepository(settings)
  const { keys, location } = repository
  if (keys === undefined) throw failure('REPOSITORY_NOT_ENCRYPTED', { path: location })
  return await use(keys)
}
