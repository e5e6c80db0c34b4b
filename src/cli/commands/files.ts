/**
 * umbra files: looks into the file systems of a VM in a recovery point, and copies files out of them. Nothing is restored, nothing
 * is mounted on this host, and libvirt is not needed.
 */

import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import { failure } from '../../errors.ts'
import { type Copied, copyOut } from '../../guest-files/copy-out.ts'
import type { FoundFile } from '../../guest-files/guest-files.ts'
import { escapeName, type GuestPlace, namesOf, nameText, parsePlace, toBytes } from '../../guest-files/guest-path.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { fileDocument, fileLine, fileSystemsText, filesText } from '../guest-files-listing.ts'
import { type GuestFilesSession, openGuestFiles } from '../guest-files-session.ts'
import { bytesText, countText } from '../output.ts'
import { unlockOf } from '../passphrase.ts'

interface Options {
  readonly vm?: string
  readonly owner?: true
  readonly into?: string
  readonly escaped?: true
}

const actions = ['ls', 'cat', 'cp', 'search'] as const
type Action = (typeof actions)[number]

/** Of one directory, and of one search with --json. */
const mostFiles = 200_000

export function addFiles(program: Command, run: Run): void {
  program
    .command('files')
    .summary('list, read, copy and search files in a recovery point')
    .description(
      'Looks into the file systems of a VM in a recovery point without restoring it: ext4, XFS, btrfs, NTFS and FAT, in\n' +
        'partitions (GPT, MBR) and in LVM. A helper VM reads them; nothing is mounted on this host.\n\n' +
        'A file is named as FILESYSTEM:/PATH (vda1:/etc/fstab, vg0/root:/etc, UUID=...:/etc, LABEL=data:/), or as /PATH if\n' +
        'only one file system has it.',
    )
    .argument('<point>', 'id, its beginning, its last four letters, or latest')
    .argument('[action]', 'ls, cat, cp or search', action, 'ls')
    .argument('[path...]', 'ls [PATH...], cat PATH..., cp PATH... TARGET, search PATH PATTERN')
    .option('--vm <name>', 'the VM, by name or UUID, if the recovery point holds several')
    .option('--into <dir>', 'cp: into this directory, which exists, under their own names')
    .option('--owner', 'cp: keep owners, setuid and setgid (only root can)')
    .option('--escaped', 'paths and pattern are written as ls prints odd names: \\n, \\t, \\\\, \\377')
    .addHelpText(
      'after',
      `
Examples:
  umbra files latest --vm web01                            its file systems
  umbra files ab2c ls vda1:/etc
  umbra files ab2c cat vg0/root:/etc/fstab
  umbra files ab2c cp vda1:/etc ./etc-of-web01             what is not there yet
  umbra files ab2c cp /etc/hosts /etc/passwd --into .
  umbra files ab2c search vda1:/ '*.conf'`,
    )
    .action((point: string, verb: Action, paths: string[], options: Options) =>
      run((context) => files(point, verb, paths, options, context), { unwinds: true }),
    )
}

function action(text: string): Action {
  const found = actions.find((one) => one === text)
  if (found === undefined) throw new InvalidArgumentError(`It must be one of ${actions.join(', ')}.`)
  return found
}

async function files(
  wanted: string,
  verb: Action,
  paths: readonly string[],
  options: Options,
  context: CommandContext,
): Promise<Report> {
  const work = prepare(verb, paths, options, context)
  const unlock = unlockOf(context.settings)
  const openAgain = () => openSettledRepository(context.settings, { signal: context.signal }, unlock)
  await using repository = await openAgain()
  const point = await choosePoint(repository, wanted, options.vm === undefined ? [] : [options.vm])
  await recoverFirst(context, 'continue')
  await using session = await openGuestFiles({ point, vm: options.vm, openAgain }, context)
  const { document, text } = await work(session)
  return {
    document: { recoveryPoint: point.id, vm: session.vm, ...document },
    text,
    exitCode: session.files.problems === 0 && document.whole !== false ? 0 : 1,
  }
}

interface Outcome {
  readonly document: Readonly<Record<string, unknown>>
  readonly text: string
}

/** Wrong usage is told before anything starts. */
function prepare(verb: Action, paths: readonly string[], options: Options, context: CommandContext) {
  const { into, owner, escaped } = options
  if (verb !== 'cp' && (into !== undefined || owner !== undefined)) throw usage('--into and --owner belong to cp')
  const place = (path: string) => parsePlace(path, escaped)
  if (verb === 'search') {
    const [path, pattern, ...more] = paths
    if (path === undefined || pattern === undefined || more.length > 0) throw usage('search takes PATH and PATTERN')
    if (pattern.includes('/')) throw usage('the pattern of a search is for names: it has no slash')
    const [from, bytes] = [place(path), toBytes(pattern, escaped === true)]
    return (session: GuestFilesSession) => search(session, from, bytes, context)
  }
  if (verb === 'cp') {
    const sources = into === undefined ? paths.slice(0, -1) : paths
    const target = into ?? paths.at(-1)
    if (sources.length === 0 || target === undefined) throw usage('cp takes PATH and TARGET, or PATH... and --into DIR')
    if (into === undefined && sources.length > 1) throw usage('several files are copied with --into DIR')
    const places = sources.map(place)
    return (session: GuestFilesSession) => copy(session, places, target, options, context)
  }
  const places = paths.map(place)
  if (verb === 'ls') return (session: GuestFilesSession) => list(session, places, context)
  if (places.length === 0) throw usage('cat takes PATH...')
  if (context.screen.isForPrograms) throw usage('cat writes files as they are: leave out --json')
  return (session: GuestFilesSession) => cat(session, places, context)
}

const usage = (reason: string): Error => failure('USAGE', { reason })

async function list(
  { files }: GuestFilesSession,
  places: readonly GuestPlace[],
  { screen }: CommandContext,
): Promise<Outcome> {
  if (places.length === 0) {
    const fileSystems = await files.fileSystems()
    return {
      document: { fileSystems: fileSystems.map(({ index, ...rest }) => rest) },
      text: fileSystemsText(fileSystems, screen.width),
    }
  }
  const listings: { place: GuestPlace; found: FoundFile; names: { file: FoundFile['file']; name: string }[] }[] = []
  for (const place of places) {
    const found = await files.find(place, { follow: true })
    if (found.file.kind !== 'directory') {
      listings.push({ place, found, names: [{ file: found.file, name: namesOf(found.file.path).at(-1) ?? '/' }] })
      continue
    }
    const listed = await files.list(found, mostFiles)
    if (listed === undefined)
      throw failure('GUEST_FILES_REFUSED', { reason: `${place.text} has more than ${mostFiles} names` })
    listings.push({ place, found, names: listed.map((file) => ({ file, name: namesOf(file.path).at(-1) ?? '' })) })
  }
  const headed = ({ place, names }: (typeof listings)[number]) =>
    listings.length === 1 ? filesText(names) : `${place.text}:\n${filesText(names)}`
  return {
    document: {
      files: listings.flatMap(({ found, names }) => names.map(({ file }) => fileDocument(found.fileSystem.name, file))),
    },
    text: listings.map(headed).join('\n\n'),
  }
}

async function search(
  { files }: GuestFilesSession,
  place: GuestPlace,
  pattern: string,
  { screen }: CommandContext,
): Promise<Outcome> {
  const found = await files.find(place, { follow: true })
  if (found.file.kind !== 'directory')
    throw failure('GUEST_PATH_NOT_FOUND', { path: place.text, reason: 'it is no directory' })
  const { name } = found.fileSystem
  const kept: Record<string, unknown>[] = []
  let count = 0
  for await (const file of files.search(found, pattern)) {
    if (file === undefined) continue
    count++
    if (screen.isForPrograms && count <= mostFiles) kept.push(fileDocument(name, file))
    if (screen.isForPrograms) continue
    const line = fileLine({ file, name: `${name}:/${file.path}` })
    if (!(await screen.raw(Buffer.from(`${line}\n`)))) break
  }
  return { document: { files: kept, ...(count > mostFiles ? { whole: false, found: count } : {}) }, text: '' }
}

async function cat(
  { files }: GuestFilesSession,
  places: readonly GuestPlace[],
  { screen }: CommandContext,
): Promise<Outcome> {
  for (const place of places) {
    const found = await files.find(place, { follow: true })
    if (found.file.kind !== 'file')
      throw failure('GUEST_FILES_REFUSED', { reason: `${place.text} is a ${found.file.kind}` })
    for await (const bytes of files.content(found)) {
      if (!(await screen.raw(bytes))) return { document: {}, text: '' }
    }
  }
  return { document: {}, text: '' }
}

async function copy(
  { files }: GuestFilesSession,
  places: readonly GuestPlace[],
  target: string,
  { into, owner }: Options,
  { signal, screen }: CommandContext,
): Promise<Outcome> {
  if (owner === true && process.getuid?.() !== 0) throw usage('--owner: only root can give files to others')
  if (into !== undefined && !(await stat(into).catch(() => undefined))?.isDirectory()) {
    throw usage(`there is no directory ${into}`)
  }
  const copied: ({ from: string; to: string } & Copied)[] = []
  for (const place of places) {
    // The last name is copied as what it is, also a symbolic link.
    const found = await files.find(place, { follow: false })
    const name = namesOf(found.file.path).at(-1) ?? found.fileSystem.name.replaceAll('/', '-')
    const to = into === undefined ? target : join(into, nameText(name) ?? escapeName(name))
    const meter = screen.meter(escapeName(found.file.path) || '/')
    const outcome = await copyOut(files, found, to, {
      keepOwners: owner === true,
      signal,
      onProgress: (bytes) => meter(bytes, Math.max(bytes, found.file.kind === 'file' ? found.file.sizeBytes : bytes)),
      onNote: screen.note,
    })
    copied.push({ from: place.text, to, ...outcome })
  }
  return {
    document: { copied, whole: copied.every(({ isWhole }) => isWhole) },
    text: copied.map(copiedText).join('\n'),
  }
}

function copiedText({
  from,
  to,
  files,
  directories,
  links,
  sizeBytes,
  skipped,
  isWhole,
}: { from: string; to: string } & Copied): string {
  const parts = [
    countText(files, 'file'),
    ...(directories > 0 ? [directories === 1 ? '1 directory' : `${directories} directories`] : []),
  ]
  const more = [...(links > 0 ? [countText(links, 'link')] : []), bytesText(sizeBytes)]
  const left = skipped === 0 ? '' : `; ${skipped} left out`
  return `${from} to ${to}: ${[...parts, ...more].join(', ')}${left}${isWhole ? '' : '; some files could not be read as a whole'}`
}
