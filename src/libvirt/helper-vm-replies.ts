/**
 * What the helper VM says on its port, line by line: see helper-vm/init. It has read disks that a guest has written, so
 * every byte of it is suspect: lines and their number are bounded, words are checked, and text is cleaned for people.
 */
import { failure } from '../errors.ts'

/** A volume that has been rolled back, as `group/volume` or `fsid:/subvolume`. */
export interface RevertedVolume {
  readonly where: string
  readonly chunks: number
}

export type RevertEnd =
  | { readonly exit: 0; readonly reverted: readonly RevertedVolume[] }
  | { readonly exit: number; readonly reason: string }

const maximumLineBytes = 8192
const maximumVolumes = 4096

/** Cuts a stream into lines; a line that is too long is refused, not kept. */
export class BoundedLines {
  #rest = ''

  take(bytes: Uint8Array): string[] {
    const lines = (this.#rest + Buffer.from(bytes).toString('latin1')).split('\n')
    this.#rest = lines.pop() ?? ''
    if ([this.#rest, ...lines].some((line) => line.length > maximumLineBytes)) throw broken('a line is too long')
    return lines.map((line) => Buffer.from(line, 'latin1').toString('utf8').replace(/\r$/, ''))
  }
}

/** Gathers the answer to one `revert`; `take` gives the end with its last line. */
export class RevertReply {
  readonly #reverted: RevertedVolume[] = []
  #reason = ''

  take(line: string): RevertEnd | undefined {
    const [word, ...fields] = line.split('\t')
    switch (word) {
      case 'reverted':
        this.#reverted.push(readVolume(fields))
        if (this.#reverted.length > maximumVolumes) throw broken('it names too many volumes')
        return undefined
      case 'reason':
        this.#reason = forPeople(fields.join(' '))
        return undefined
      case 'exit':
        return this.#end(fields)
      default:
        throw broken(`it says ${JSON.stringify(forPeople(line))}`)
    }
  }

  #end([code = '', ...more]: readonly string[]): RevertEnd {
    if (!/^\d{1,3}$/.test(code) || more.length > 0) throw broken('its exit status is none')
    if (code === '0') return { exit: 0, reverted: this.#reverted }
    return { exit: Number(code), reason: this.#reason || `umbra-revert ended with ${code}` }
  }
}

function readVolume([where = '', chunks = '', ...more]: readonly string[]): RevertedVolume {
  if (where === '' || forPeople(where) !== where || !/^\d{1,15}$/.test(chunks) || more.length > 0) {
    throw broken('a volume it names is none')
  }
  return { where, chunks: Number(chunks) }
}

/** One line without control characters, short enough for a message. */
export function forPeople(text: string): string {
  return text
    .replace(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, ' ')
    .trim()
    .slice(0, 1000)
}

function broken(reason: string) {
  return failure('HELPER_VM_FAILED', { reason: `it broke the protocol: ${reason}` })
}
