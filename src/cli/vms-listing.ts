/**
 * What `umbra vms` prints: one line for each VM, or everything about it with each condition as an administrator would ask
 * for it. Pure.
 */
import { bytesText, countText, tableText } from './output.ts'
import {
  clusterLines,
  conditionLines,
  costlyDisks,
  howText,
  methodText,
  recoveryLines,
  sumOf,
  type VmRecord,
} from './vm-record.ts'

export type ListedVm = VmRecord & { readonly obstacles: readonly string[] }

export function renderVms(vms: readonly ListedVm[], width: number | undefined): string {
  const columns = ['VM', 'STATE', 'METHOD', 'CONSISTENCY', 'DISKS', 'NOTES'].map((head) => ({ head }))
  const rows = vms.map((vm) => [
    vm.name,
    vm.power,
    vm.obstacles.length > 0 ? 'not possible' : methodText(vm),
    vm.obstacles.length > 0 ? '' : vm.consistency,
    vm.disks.length === 0 ? 'none' : `${vm.disks.length} (${bytesText(sumOf(vm.disks, 'sizeBytes'))})`,
    notes(vm).join('\n'),
  ])
  return tableText(columns, rows, width)
}

function notes(vm: ListedVm): string[] {
  const { because, obstacles, excluded, recovery } = vm
  return [
    ...clusterLines(vm),
    ...(obstacles.length > 0 ? obstacles : [because]),
    ...(recovery === undefined || obstacles.length > 0 ? [] : [`${recovery.way}: ${recovery.because}`]),
    ...excluded.map(({ target, reason }) => `without ${target}: ${reason}`),
  ]
}

export function renderVmInWords(vm: ListedVm): string {
  const how =
    vm.obstacles.length > 0
      ? ['  can not be backed up:', ...vm.obstacles.map((obstacle) => `    ${obstacle}`)]
      : [`  ${howText(vm)}: ${vm.because}`, ...recoveryLines(vm)]
  const disks = vm.disks.map(
    ({ target, sizeBytes, location }) => `  disk   ${target}: ${bytesText(sizeBytes)}, ${location}`,
  )
  return [
    `${vm.name} (${vm.uuid}, ${vm.power}, ${countText(vm.disks.length, 'disk')})`,
    ...clusterLines(vm).map((line) => `  ${line}`),
    ...how,
    ...conditionLines(vm),
    ...disks,
    ...costlyDisks(vm).map((line) => `  ${line}`),
    ...vm.excluded.map(({ target, reason }) => `  left out: ${target}: ${reason}`),
  ].join('\n')
}
