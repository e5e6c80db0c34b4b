/**
 * The version of this program, as package.json says it.
 */
import { readFileSync } from 'node:fs'
import { packageFile } from '../base/own-programs.ts'

export function version(): string {
  const content: unknown = JSON.parse(readFileSync(packageFile, 'utf8'))
  return String((content as { version: unknown }).version)
}
