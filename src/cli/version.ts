/**
 * The version of this program, as package.json says it.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { packageDirectory } from '../base/own-programs.ts'

export function version(): string {
  const content: unknown = JSON.parse(readFileSync(join(packageDirectory, 'package.json'), 'utf8'))
  return String((content as { version: unknown }).version)
}
