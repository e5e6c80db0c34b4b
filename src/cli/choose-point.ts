/**
 * Which recovery point is meant: an id, the beginning of one, or `latest`, the newest that holds the VMs named.
 */
import { failure } from '../errors.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import { backupContent } from './vm-record.ts'

export async function choosePoint(
  repository: Repository,
  wanted: string,
  vms: readonly string[] = [],
): Promise<RecoveryPoint> {
  if (wanted !== 'latest') return repository.point(wanted)
  const points = await repository.listPoints()
  const holdsAll = (point: RecoveryPoint) => {
    const held = backupContent(point.content).vms
    return vms.every((vm) => held.some(({ name, uuid }) => name === vm || uuid === vm))
  }
  const latest = points.findLast(holdsAll)
  if (latest === undefined)
    throw failure('RECOVERY_POINT_NOT_FOUND', { point: vms.length === 0 ? 'latest' : `of ${vms.join(', ')}` })
  return latest
}
