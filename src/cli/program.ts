/**
 * The command line as a whole: `umbra --help` is its documentation. One line per verb; src/cli/commands has the verbs.
 */
import { Command } from 'commander'
import type { ConfigurationFlags } from '../config.ts'
import type { AddCommand, Run } from './command.ts'
import { version } from './version.ts'

export interface GlobalOptions extends ConfigurationFlags {
  readonly json?: true
}

/** In the order of the help. Each is loaded only where it is meant: most of a short command's time is loading. */
const verbs: Readonly<Record<string, () => Promise<AddCommand>>> = {
  doctor: async () => (await import('./commands/doctor.ts')).addDoctor,
  vms: async () => (await import('./commands/vms.ts')).addVms,
  writers: async () => (await import('./commands/writers.ts')).addWriters,
  backup: async () => (await import('./commands/backup.ts')).addBackup,
  points: async () => (await import('./commands/points.ts')).addPoints,
  show: async () => (await import('./commands/show.ts')).addShow,
  verify: async () => (await import('./commands/verify.ts')).addVerify,
  restore: async () => (await import('./commands/restore.ts')).addRestore,
  instant: async () => (await import('./commands/instant.ts')).addInstant,
  check: async () => (await import('./commands/check.ts')).addCheck,
  recover: async () => (await import('./commands/recover.ts')).addRecover,
  export: async () => (await import('./commands/export.ts')).addExport,
  mount: async () => (await import('./commands/mount.ts')).addMount,
  files: async () => (await import('./commands/files.ts')).addFiles,
  retention: async () => (await import('./commands/retention.ts')).addRetention,
  collect: async () => (await import('./commands/collect.ts')).addCollect,
  pin: async () => (await import('./commands/pin.ts')).addPin,
  unpin: async () => (await import('./commands/pin.ts')).addUnpin,
  repository: async () => (await import('./commands/repository.ts')).addRepository,
}

/** Those that are named among the words, whether as a verb or as something else; all where help is wanted or none is named. */
async function loadVerbs(words: readonly string[]): Promise<AddCommand[]> {
  const named = Object.keys(verbs).filter((verb) => words.includes(verb))
  const all = named.length === 0 || words.some((word) => ['help', '--help', '-h'].includes(word))
  return Promise.all((all ? Object.keys(verbs) : named).flatMap((verb) => verbs[verb]?.() ?? []))
}

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

export async function buildProgram(
  words: readonly string[],
  run: (options: GlobalOptions, ...rest: Parameters<Run>) => Promise<void>,
): Promise<Command> {
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
    .configureOutput({ outputError: () => undefined }) // told by run.ts
    .exitOverride()
  for (const add of await loadVerbs(words)) add(program, (command, options) => run(program.opts(), command, options))
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
