/**
 * umbra doctor: is everything there that Umbra needs? Changes nothing. Exit code 1 if something would fail.
 */
import type { Command } from 'commander'
import { type Finding, runChecks } from '../checks.ts'
import type { CommandContext, Report, Run } from '../command.ts'
import { bad, doubtful, good, tableText } from '../output.ts'

export function addDoctor(program: Command, run: Run): void {
  program
    .command('doctor')
    .summary('check this host')
    .description('Checks Node.js, libvirt, QEMU, KVM, the state directory, the repository and interrupted sessions.')
    .action(() => run(doctor))
}

const marks = { ok: () => good('ok'), attention: () => doubtful('note'), failed: () => bad('FAILED') }

async function doctor({ settings, screen }: CommandContext): Promise<Report> {
  const checks = await runChecks(settings)
  const columns = ['', 'CHECK', 'FOUND'].map((head) => ({ head }))
  const healthy = checks.every(({ status }) => status !== 'failed')
  return {
    document: { healthy, checks },
    text: tableText(columns, checks.map(row), screen.width),
    exitCode: healthy ? 0 : 1,
  }
}

const row = ({ check, status, detail, hint }: Finding): string[] => [
  marks[status](),
  check,
  hint === undefined ? detail : `${detail}\n-> ${hint}`,
]
