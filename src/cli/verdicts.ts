/**
 * Verdicts of boot checks as they are told: the newest on each VM of a recovery point.
 */
import type { Check } from '../repository/repository.ts'
import { oneLine } from './output.ts'

/** The newest on each VM, in the order of their names; `checks` come oldest first. */
export function newestChecks(checks: readonly Check[]): Check[] {
  const newest = new Map(checks.map((check) => [check.vm.uuid, check]))
  return [...newest.values()].sort((one, other) => (one.vm.name < other.vm.name ? -1 : 1))
}

const longestReason = 200

/** `boots: yes, 2026-11-22`, `boots: NO: agent silent after 120 s`; with the VM's name where there are several. */
export function verdictText({ vm, passed, reason, checkedAt }: Check, named: boolean): string {
  const whose = named ? `${vm.name} ` : ''
  if (passed) return `${whose}boots: yes, ${checkedAt.slice(0, 10)}`
  const told = oneLine(reason)
  return `${whose}boots: NO: ${told.length > longestReason ? `${told.slice(0, longestReason)}…` : told}`
}

/** For programs: without the picture, which `umbra check --screens` writes. */
export const checkDocument = ({ id, checkedAt, vm, passed, reason, evidence }: Check) => {
  return { id, checkedAt, vm, passed, reason, evidence }
}
