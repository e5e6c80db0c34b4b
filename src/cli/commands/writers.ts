/**
 * umbra writers: the VSS writers of this host in the shape of `vssadmin list writers`.
 */
import type { Command } from 'commander'
import { describeError, Failure } from '../../base/failure.ts'
import { openHypervisor, vmWriter } from '../../compose.ts'
import { refOf } from '../../vss/components.ts'
import type { Writer } from '../../vss/writer.ts'
import { type CommandContext, type Report, type Run, recoverFirst } from '../command.ts'
import { version } from '../version.ts'
import { type ListedWriter, renderWriters, renderWritersDetailed } from '../writers-listing.ts'

interface Options {
  readonly detailed?: true
}

export function addWriters(program: Command, run: Run): void {
  program
    .command('writers')
    .summary('list the VSS writers and their states')
    .description('Lists the VSS writers in the shape of `vssadmin list writers`, in detail in that of DiskShadow.')
    .option('--detailed', 'with components, files and volumes')
    .action((options: Options) => run((context) => writers(options, context)))
}

async function writers({ detailed }: Options, context: CommandContext): Promise<Report> {
  const { settings, screen } = context
  await using hypervisor = await openHypervisor(settings)
  await recoverFirst(context, 'continue')
  const policy = { method: 'auto', require: 'crash', instant: 'vm' } as const
  const listed = [await identify(vmWriter(settings, hypervisor, policy), screen.note)]
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
