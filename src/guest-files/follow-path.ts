/**
 * The way of a path through one file system: which names are next to be looked at, and where symbolic links and `..` lead.
 * Nothing leads above the root. Pure.
 */
import type { GuestFile } from './file-record.ts'
import { escapeName, namesOf } from './guest-path.ts'

export interface Way {
  /** Directories that were seen, and no symbolic link among them; at the end the file. */
  readonly real: readonly string[]
  /** Names that are still to be looked at. */
  readonly left: readonly string[]
  readonly links: number
}

/** Why a path is not there. */
export class DeadEnd extends Error {}

const mostLinks = 40
/** Names looked at together. */
const namesAtOnce = 16

export const wayOf = (names: readonly string[]): Way => ({ real: [], left: names, links: 0 })

/** What is to be looked at: the place reached, and below it the next names. */
export function nextLook({ real, left }: Way): (readonly string[])[] {
  const parent = left.indexOf('..')
  const names = left.slice(0, parent < 0 ? namesAtOnce : Math.min(parent, namesAtOnce))
  return [real, ...names.map((_, i) => [...real, ...names.slice(0, i + 1)])]
}

/**
 * Goes on with what was looked at, by path: undefined for what is not there. `follow`: a symbolic link at the end too.
 * Throws DeadEnd.
 */
export function goOn(way: Way, looked: ReadonlyMap<string, GuestFile | undefined>, follow: boolean): Way {
  const { real, links } = way
  const [name, ...rest] = way.left
  if (name === undefined) return way
  if (name === '..') return goOn({ real: real.slice(0, -1), left: rest, links }, looked, follow)
  const path = [...real, name].join('/')
  if (!looked.has(path)) return way
  const file = looked.get(path)
  if (file === undefined) throw new DeadEnd(`there is no ${escapeName(path)}`)
  if (file.kind === 'symlink' && (follow || rest.length > 0)) {
    if (links >= mostLinks) throw new DeadEnd('its symbolic links have no end')
    const target = file.link ?? ''
    const from = target.startsWith('/') ? [] : real
    return goOn({ real: from, left: [...namesOf(target), ...rest], links: links + 1 }, looked, follow)
  }
  if (rest.length > 0 && file.kind !== 'directory') throw new DeadEnd(`${escapeName(path)} is no directory`)
  return goOn({ real: [...real, name], left: rest, links }, looked, follow)
}
