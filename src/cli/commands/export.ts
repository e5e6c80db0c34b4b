/**
 * umbra export: a recovery point as disk images, for any other host. Needs the repository, and no libvirt.
 */
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { type Command, Option } from 'commander'
import { systemClock } from '../../base/clock.ts'
import { createWritableImage, socketDirectory } from '../../compose.ts'
import { limitedSink } from '../../disk/limited-source.ts'
import { failure } from '../../errors.ts'
import { domainXmlEditor } from '../../libvirt/configuration-editor.ts'
import type { ImageFormat } from '../../libvirt/disk-image.ts'
import { checkImage, compareImage } from '../../libvirt/image-check.ts'
import type { Repository } from '../../repository/repository.ts'
import {
  type ExportEnvironment,
  type ExportFormat,
  type ExportResult,
  exportFormats,
  exportPoint,
} from '../../requester/export-point.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText, durationText } from '../output.ts'
import { limitOf, type RateOptions, rateOption } from '../rate-option.ts'

interface Options extends RateOptions {
  readonly vm: readonly string[]
  readonly format: ExportFormat
  readonly to: string
  readonly check: boolean
}

export function addExport(program: Command, run: Run): void {
  program
    .command('export')
    .summary('write VMs of a recovery point as disk images')
    .description(
      'Writes the disks of VMs as images VM-TARGET.FORMAT, and the configuration beside them as VM.xml, which names\n' +
        'the images. Needs no libvirt. All of it appears at the end, or none; no file is ever replaced.',
    )
    .argument('<point>', 'id, its beginning, its last four letters, or latest')
    .option(
      '--vm <name>',
      'only this VM (by name or UUID); may be repeated',
      (name, names: string[]) => [...names, name],
      [],
    )
    .addOption(new Option('--format <format>', 'of the images').choices(exportFormats).default('qcow2'))
    .requiredOption('--to <dir>', 'put the files into this directory')
    .option('--no-check', 'do not read the images back to compare them with the recovery point')
    .addOption(rateOption('--limit-read', 'read from the repository'))
    .addOption(rateOption('--limit-write', 'write the images'))
    .addHelpText(
      'after',
      `
Examples:
  umbra export ab2c --vm web01 --format vhdx --to /srv/for-hyper-v
  umbra export latest --format raw --to /mnt/usb --no-check`,
    )
    .action((point: string, options: Options) =>
      run((context) => exportCommand(point, options, context), { unwinds: true }),
    )
}

async function exportCommand(wanted: string, options: Options, context: CommandContext): Promise<Report> {
  const { settings, signal } = context
  const directory = await existingDirectory(options.to)
  await using repository = await openSettledRepository(settings, { get: limitOf(options.limitRead), signal })
  const point = await choosePoint(repository, wanted, options.vm)
  await recoverFirst(context, 'continue')
  const request = { names: options.vm, format: options.format, directory, check: options.check }
  const result = await exportPoint(point, request, await environmentOf(context, repository, options))
  return { document: result, text: resultText(result) }
}

async function environmentOf(
  { settings, signal, screen }: CommandContext,
  { chunkSizeBytes }: Repository,
  { limitWrite }: Options,
): Promise<ExportEnvironment> {
  const sockets = await socketDirectory(settings)
  const limit = limitOf(limitWrite)
  return {
    chunkSizeBytes,
    async createImage(path, format, sizeBytes) {
      const image = await createWritableImage(path, format as ImageFormat, sizeBytes, sockets)
      return limit === undefined ? image : limitedSink(image, limit, signal)
    },
    checkImage,
    compareImage,
    rewrite: (configuration, places) => domainXmlEditor.edit(configuration, places),
    socketDirectory: sockets,
    clock: systemClock,
    signal,
    onProgress: screen.progress,
    onAbandoned: (paths) => screen.note(`removed what an export that was killed had left: ${paths.join(', ')}`),
    onStep: (vm, step) => screen.say(`${vm}: ${step}`),
  }
}

/** --to, absolute. USAGE when it is no directory. */
async function existingDirectory(to: string): Promise<string> {
  const directory = resolve(to)
  if ((await stat(directory).catch(() => undefined))?.isDirectory()) return directory
  throw failure('USAGE', { reason: `--to: there is no directory ${directory}` })
}

function resultText({ recoveryPoint, vms, checked, durationMs }: ExportResult): string {
  return [
    ...vms.flatMap(({ name, configuration, disks, nvram, notes }) => [
      `${name} was exported: ${configuration}`,
      ...disks.map(({ path, sizeBytes }) => `  ${path} (${bytesText(sizeBytes)})`),
      ...(nvram === undefined ? [] : [`  ${nvram}`]),
      ...notes.map((note) => `  note: ${note}`),
    ]),
    `recovery point ${recoveryPoint}, ${durationText(durationMs)}, ${checked ? 'checked and compared' : 'not checked'}`,
  ].join('\n')
}
