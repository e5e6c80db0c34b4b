/**
 * A directory of this host that can be backed up, as the configuration names it (docs/host-files.md), and which of the
 * names below it are left out.
 */

export interface HostDirectory {
  /** Its component's name: letters, digits, dot, dash, underscore; never like a UUID, which is a VM's. */
  readonly name: string
  /** Absolute. */
  readonly directory: string
  /** The program that brings the application to rest: `hook freeze`, `hook thaw`. */
  readonly hook: string
  /** How long the hook may take to freeze. */
  readonly freezeMs?: number
  readonly exclude?: readonly string[]
}

/** What a name leaves out: `(path below the directory) => left out`. Paths are bytes. */
export type IsExcluded = (path: Buffer) => boolean

/**
 * A pattern without a slash fits a name at any depth, one with a slash the whole path below the directory. `*` and `?`
 * never stand for a slash. Bytes are compared, so a name in any encoding can be met.
 */
export function exclusion(patterns: readonly string[]): IsExcluded {
  const whole: RegExp[] = []
  const anywhere: RegExp[] = []
  for (const pattern of patterns) {
    const bytes = Buffer.from(pattern.replace(/^\/+|\/+$/g, '')).toString('latin1')
    const source = bytes
      .replace(/[.+^${}()|[\]\\]/g, '\\$&')
      .replaceAll('*', '[^/]*')
      .replaceAll('?', '[^/]')
    const list = pattern.replace(/\/+$/, '').includes('/') ? whole : anywhere
    list.push(new RegExp(`^${source}$`, 's'))
  }
  return (path) => {
    const text = path.toString('latin1')
    const name = text.slice(text.lastIndexOf('/') + 1)
    return anywhere.some((one) => one.test(name)) || whole.some((one) => one.test(text))
  }
}
