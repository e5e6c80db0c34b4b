/**
 * The command line as a whole: `umbra --help` is its documentation. One line per verb; src/cli/commands has the verbs.
 */
import { Command } from 'commander'
import type { ConfigurationFlags } from '../config.ts'
import type { AddCommand, Run } from './command.ts'
import { addBackup } from './commands/backup.ts'
import { addCheck } from './commands/check.ts'
import { addCollect } from './commands/collect.ts'
import { addDoctor } from './commands/doctor.ts'
import { addExport } from './commands/export.ts'
import { addFiles } from './commands/files.ts'
import { addInstant } from './commands/instant.ts'
import { addMount } from './commands/mount.ts'
import { addPin, addUnpin } from './commands/pin.ts'
import { addPoints } from './commands/points.ts'
import { addRecover } from './commands/recover.ts'
import { addRepository } from './commands/repository.ts'
import { addRestore } from './commands/restore.ts'
import { addRetention } from './commands/retention.ts'
import { addShow } from './commands/show.ts'
import { addVerify } from './commands/verify.ts'
import { addVms } from './commands/vms.ts'
import { addWriters } from './commands/writers.ts'
import { version } from './version.ts'

export interface GlobalOptions extends ConfigurationFlags {
  readonly json?: true
}

const verbs: readonly AddCommand[] = [
  ...[addDoctor, addVms, addWriters],
  ...[addBackup, addPoints, addShow, addVerify, addRestore, addInstant, addCheck, addRecover],
  ...[addExport, addMount, addFiles],
  ...[addRetention, addCollect, addPin, addUnpin, addRepository],
]

const more = `
What is needed each time can be settled once. It is looked for in this order:
  option, variable (UMBRA_CONNECT, UMBRA_REPOSITORY, UMBRA_PASSPHRASE_FILE,
  UMBRA_KEY_FILE, UMBRA_PASSPHRASE, UMBRA_STATE, UMBRA_CONFIG),
  configuration file (connect:, repository:, passphrase-file:, key-file:,
  state:, profile:, limits:), default

Exit codes:
  0    done
  1    failed: nothing was changed, or everything was put back
  2    wrong usage
  3    done, but something is left to clean up
  130  cancelled, and put back; a second signal leaves that to the next start

First steps:
  umbra doctor                            is everything there?
  umbra vms                               how would each VM be backed up?
  umbra repository create /backup         asks for its passphrase
  umbra backup web01 --repository /backup
  umbra points --repository /backup
  umbra restore ab2c --vm web01 --as web01-copy --repository /backup --dry-run`

export function buildProgram(run: (options: GlobalOptions, ...rest: Parameters<Run>) => Promise<void>): Command {
  const program = new Command('umbra')
    .description(
      'Backs up running virtual machines on libvirt/QEMU hosts without interrupting them, and brings them back.',
    )
    .version(version(), '--version')
    .option('--json', 'print exactly one JSON document on standard output')
    .option('--connect <uri>', 'libvirt: qemu:///system, or qemu+unix:///system?socket=PATH')
    .option('--repository <dir>', 'where the recovery points are')
    .option('--passphrase-file <file>', 'opens an encrypted repository: a passphrase, in a file')
    .option('--key-file <file>', 'opens an encrypted repository: 32 random bytes')
    .option('--state <dir>', "Umbra's own state (default: /var/lib/umbra for root)")
    .option('--config <file>', 'configuration file (default: /etc/umbra/umbra.yaml if it is there)')
    .addHelpText('after', more)
    .configureHelp({ showGlobalOptions: true, sortSubcommands: false, subcommandTerm })
    .configureOutput({ outputError: () => undefined }) // told by main.ts
    .exitOverride()
  for (const add of verbs) add(program, (command, options) => run(program.opts(), command, options))
  return program
}

/** A verb with what it needs; what it may take besides only when that is one thing. */
function subcommandTerm(command: Command): string {
  const taken = command.registeredArguments
  const told = taken.filter(({ required }) => required || taken.filter((one) => !one.required).length === 1)
  const words = told.map((one) =>
    (one.required ? `<${one.name()}>` : `[${one.name()}]`).replace(/(?=.$)/, one.variadic ? '...' : ''),
  )
  return [command.name(), ...words].join(' ')
}
