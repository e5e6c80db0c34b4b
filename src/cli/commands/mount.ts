/**
 * umbra mount: the disks of a recovery point as read-only files, until ^C. Needs the repository and FUSE, and no libvirt.
 */
import { randomBytes } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import type { Command } from 'commander'
import { describeError } from '../../base/failure.ts'
import { socketDirectory } from '../../compose.ts'
import type { LendingSource } from '../../disk/block-device.ts'
import { type DiskServer, type ServedFailure, serveDisks } from '../../disk/nbd-server.ts'
import { failure } from '../../errors.ts'
import { type FuseMount, mountDisks } from '../../libvirt/fuse-export.ts'
import { exportableVms, openDisk } from '../../requester/export-contents.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText } from '../output.ts'

interface Options {
  readonly vm: readonly string[]
}

/** How long a reader of the files waits for a repository that can not be reached. */
const patienceMs = 60_000

export function addMount(program: Command, run: Run): void {
  program
    .command('mount')
    .summary('show the disks of a recovery point as read-only files')
    .description(
      'Shows the disks of VMs as read-only image files DIR/VM-TARGET.raw, whose bytes are read out of the repository\n' +
        'and verified as somebody reads them. Stays until ^C, then unmounts. Needs FUSE (/dev/fuse).',
    )
    .argument('<point>', 'id, its beginning, its last four letters, or latest')
    .argument('<dir>', 'a directory that exists')
    .option(
      '--vm <name>',
      'only this VM (by name or UUID); may be repeated',
      (name, names: string[]) => [...names, name],
      [],
    )
    .addHelpText(
      'after',
      `
Examples:
  umbra mount latest /mnt/point --vm web01
  umbra mount ab2c /mnt/point`,
    )
    .action((point: string, directory: string, options: Options) =>
      run((context) => mountCommand(point, directory, options, context), { unwinds: true }),
    )
}

async function mountCommand(
  wanted: string,
  to: string,
  { vm: names }: Options,
  context: CommandContext,
): Promise<Report> {
  const { settings, signal, screen } = context
  const directory = resolve(to)
  if (!(await stat(directory).catch(() => undefined))?.isDirectory())
    throw failure('USAGE', { reason: `there is no directory ${directory}` })
  await using repository = await openSettledRepository(settings, { signal })
  const point = await choosePoint(repository, wanted, names)
  const vms = await exportableVms(point, names)
  if (vms.every((vm) => vm.disks.length === 0)) throw failure('USAGE', { reason: 'there is no disk to mount in it' })
  await recoverFirst(context, 'continue')
  await using sources = new AsyncDisposableStack()
  const disks: { name: string; path: string; source: LendingSource }[] = []
  for (const disk of vms.flatMap((vm) => vm.disks)) {
    const source = sources.use(await openDisk(point, disk))
    disks.push({ name: disk.fileName, path: join(directory, `${disk.fileName}.raw`), source })
  }
  const told = (what: string) => (failed: ServedFailure) =>
    screen.note(`${failed.name} at offset ${failed.offset}: ${what}: ${describeError(failed.error)}`)
  await using server: DiskServer = await serveDisks(disks, {
    socketPath: join(await socketDirectory(settings), `mount-${randomBytes(4).toString('hex')}.sock`),
    patienceMs,
    onWaiting: told('waiting for the repository'),
    onFailure: told('can not be read'),
  })
  signal.throwIfAborted()
  const mounts = disks.map(({ name, path }) => ({ exportName: name, path }))
  await using mount: FuseMount = await mountDisks(mounts, { socketPath: server.socketPath, signal })
  for (const { path, source } of disks) screen.say(`${path} (${bytesText(source.sizeBytes)}, read-only)`)
  screen.say('mounted; ^C unmounts')
  const reason = await Promise.race([mount.ended, whenAborted(signal)])
  if (reason !== undefined) throw failure('MOUNT_FAILED', { paths: disks.map(({ path }) => path), reason })
  const paths = disks.map(({ path }) => path)
  return { document: { recoveryPoint: point.id, unmounted: paths }, text: `unmounted: ${paths.join(', ')}` }
}

function whenAborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((done) => {
    if (signal.aborted) done(undefined)
    else signal.addEventListener('abort', () => done(undefined), { once: true })
  })
}
