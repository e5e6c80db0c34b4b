/**
 * umbra pin, umbra unpin: recovery points that must not be removed.
 */
import { type Command, InvalidArgumentError } from 'commander'
import { failure } from '../../errors.ts'
import { isPointId } from '../../repository/recovery-point.ts'
import { noteMaxLength } from '../../repository/retention/pins.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { oneLine } from '../output.ts'

const pointHelp = 'id, its beginning, its last four letters, or latest'

export function addPin(program: Command, run: Run): void {
  program
    .command('pin')
    .summary('forbid to remove a recovery point')
    .description('Pins a recovery point: neither retention nor anything else removes it until it is unpinned.')
    .argument('<point>', pointHelp)
    .requiredOption('--note <text>', 'why; told wherever the pin is', note)
    .action((point: string, options: { readonly note: string }) =>
      run((context) => pinCommand(point, options.note, context)),
    )
}

export function addUnpin(program: Command, run: Run): void {
  program
    .command('unpin')
    .summary('allow to remove a recovery point again')
    .description('Removes the pin of a recovery point. The point stays until retention removes it.')
    .argument('<point>', pointHelp)
    .action((point: string) => run((context) => unpinCommand(point, context)))
}

function note(text: string): string {
  const line = oneLine(text)
  if (line.length >= 1 && line.length <= noteMaxLength) return line
  throw new InvalidArgumentError(`It must be a line of 1 to ${noteMaxLength} characters.`)
}

async function pinCommand(wanted: string, note: string, context: CommandContext): Promise<Report> {
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const { id } = await choosePoint(repository, wanted)
  const outcome = await repository.pin(id, note)
  const before = outcome === 'exists' ? (await repository.pins()).get(id) : undefined
  if (before !== undefined && before.note !== note) {
    throw failure('USAGE', {
      reason: `${id} is pinned already: ${before.note}; umbra unpin it first to change the note`,
    })
  }
  const text = `${id} ${outcome === 'exists' ? 'was pinned already' : 'is pinned'}: ${note}`
  return { document: { recoveryPoint: id, note, outcome }, text }
}

async function unpinCommand(wanted: string, context: CommandContext): Promise<Report> {
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  // With its whole id also one that can not be read, or is no more.
  const id = isPointId(wanted) ? wanted : (await choosePoint(repository, wanted)).id
  const pin = (await repository.pins()).get(id)
  await repository.unpin(id)
  const text = pin === undefined ? `${id} was not pinned` : `${id} is not pinned any more; it was: ${pin.note}`
  return { document: { recoveryPoint: id, wasPinned: pin !== undefined, ...(pin && { note: pin.note }) }, text }
}
