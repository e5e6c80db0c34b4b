/**
 * umbra mount: the disks of a recovery point as read-only files, until ^C. Needs the repository and FUSE, and no libvirt.
 */
import { stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import type { Command } from 'commander'
import { failure } from '../../errors.ts'
import { type FuseMount, mountDisks } from '../../libvirt/fuse-export.ts'
import { exportableVms } from '../../requester/export-contents.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText } from '../output.ts'
import { unlockOf } from '../passphrase.ts'
import { servePoint } from '../served-point.ts'

interface Options {
  readonly vm: readonly string[]
}

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
  const unlock = unlockOf(settings)
  const openAgain = () => openSettledRepository(settings, { signal }, unlock)
  await using repository = await openAgain()
  const point = await choosePoint(repository, wanted, names)
  const vms = await exportableVms(point, names)
  if (vms.every((vm) => vm.disks.length === 0)) throw failure('USAGE', { reason: 'there is no disk to mount in it' })
  await recoverFirst(context, 'continue')
  const disks = vms
    .flatMap((vm) => vm.disks)
    .map((disk) => ({ name: disk.fileName, path: join(directory, `${disk.fileName}.raw`), disk }))
  await using server = await servePoint({ point, disks, socketPrefix: 'mount-', openAgain }, context)
  signal.throwIfAborted()
  const mounts = disks.map(({ name, path }) => ({ exportName: name, path }))
  await using mount: FuseMount = await mountDisks(mounts, { socketPath: server.socketPath, signal })
  for (const { path, disk } of disks) screen.say(`${path} (${bytesText(disk.sizeBytes)}, read-only)`)
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
