/**
 * The version of this program, as package.json says it.
 */
import { readFileSync } from 'node:fs'

export function version(): string {
  const content: unknown = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  return String((content as { version: unknown }).version)
}
