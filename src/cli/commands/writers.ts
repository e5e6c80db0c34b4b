/**
 * umbra writers: the VSS writers of this host in the shape of `vssadmin list writers`.
 */
import type { Command } from 'commander'
import { describeError, Failure } from '../../base/failure.ts'
import { hostWriters, openHypervisor } from '../../compose.ts'
import { refOf } from '../../vss/components.ts'
import type { Writer } from '../../vss/writer.ts'
import { type CommandContext, type Report, type Run, recoverFirst } from '../command.ts'
import { type ProfileOption, policyOf, profileOption } from '../policy-options.ts'
import { version } from '../version.ts'
import { type ListedWriter, renderWriters, renderWritersDetailed } from '../writers-listing.ts'

interface Options extends ProfileOption {
  readonly detailed?: true
}

export function addWriters(program: Command, run: Run): void {
  program
    .command('writers')
    .summary('list the VSS writers and their states')
    .description('Lists the VSS writers in the shape of `vssadmin list writers`, in detail in that of DiskShadow.')
    .option('--detailed', 'with components, files and volumes')
    .addOption(profileOption())
    .action((options: Options) => run((context) => writers(options, context)))
}

async function writers({ detailed, profile }: Options, context: CommandContext): Promise<Report> {
  const { settings, screen } = context
  await using hypervisor = await openHypervisor(settings)
  await recoverFirst(context, 'continue')
  const policy = policyOf(settings, profile === undefined ? {} : { profile })
  const listed = await Promise.all(
    hostWriters(settings, hypervisor, policy).map((writer) => identify(writer, screen.note)),
  )
  const render = detailed === true ? renderWritersDetailed : renderWriters
  return { document: { writers: listed.map(documentOf) }, text: render(listed, version()).trimEnd() }
}

/** A writer whose Identify fails is listed as failed. */
async function identify(writer: Writer, note: (line: string) => void): Promise<ListedWriter> {
  try {
    return { writer, state: 'stable', metadata: await writer.onIdentify() }
  } catch (error) {
    note(`${writer.name}: ${error instanceof Failure ? error.message : describeError(error)}`)
    return { writer, state: 'failed-at-identify', lastError: 'VSS_E_WRITERERROR_NONRETRYABLE' }
  }
}

function documentOf({ writer, state, lastError, metadata }: ListedWriter) {
  const components = (metadata?.components ?? []).map((component) => {
    const { caption, label, files, volumes, obstacles } = component
    return {
      ...refOf(component),
      caption,
      label,
      files,
      volumes: volumes.map(({ id, name }) => ({ id, name })),
      obstacles,
    }
  })
  const { id, instanceId, name } = writer
  return { id, instanceId, name, state, ...(lastError === undefined ? {} : { lastError }), components }
}
