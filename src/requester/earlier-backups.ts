/**
 * Earlier backups: the recovery points a new one can be built upon. The repository itself is asked, nothing is remembered
 * elsewhere: a stamp is the id of its recovery point, and it counts for as long as that point is there.
 */
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import type { BackupStamps } from '../vss/change-tracking.ts'
import type { Volume } from '../vss/provider.ts'

/** More than one, because the newest stamp may have been lost where the one before was not. */
const wantedPerVolume = 3
/** Points looked at after each volume has been found once. */
const furtherPoints = 64

export class EarlierBackups {
  readonly #points = new Map<string, RecoveryPoint[]>()

  private constructor() {}

  /** Looks for points with a stream of each volume, newest first. */
  static async find(repository: Repository, volumes: readonly Volume[]): Promise<EarlierBackups> {
    const found = new EarlierBackups()
    const missing = new Set(volumes.map(volumeStream))
    let further = 0
    for await (const point of repository.pointsNewestFirst()) {
      if (missing.size === 0 && ++further > furtherPoints) break
      for (const { name } of point.streams) if (found.#add(name, point, volumes)) missing.delete(name)
    }
    return found
  }

  #add(stream: string, point: RecoveryPoint, volumes: readonly Volume[]): boolean {
    if (!volumes.some((volume) => volumeStream(volume) === stream)) return false
    const points = this.#points.get(stream) ?? []
    if (points.length < wantedPerVolume) this.#points.set(stream, [...points, point])
    return true
  }

  #stamps(volume: Volume): string[] {
    return (this.#points.get(volumeStream(volume)) ?? []).map(({ id }) => id)
  }

  /** What the provider is told; `next` is the id of the new point. */
  asBackupStamps(owner: string, next: string): BackupStamps {
    return { owner, next, previous: (volume) => this.#stamps(volume) }
  }

  /** The point with that stamp, or the newest; undefined when there is none whose disk had this size. */
  point(volume: Volume, sizeBytes: number, stamp?: string): RecoveryPoint | undefined {
    const points = this.#points.get(volumeStream(volume)) ?? []
    return points.find(
      ({ id, streams }) =>
        (stamp === undefined || id === stamp) &&
        streams.some((stream) => stream.name === volumeStream(volume) && stream.sizeBytes === sizeBytes),
    )
  }
}

/** The stream of a volume in a recovery point. */
export const volumeStream = ({ component, name }: Volume): string => `${component}/disks/${name}`
