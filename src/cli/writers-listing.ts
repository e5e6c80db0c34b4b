/**
 * What `umbra writers` prints: the shape of `vssadmin list writers`, and with --detailed that of DiskShadow's
 * `list writers detailed`, so that administrators' eyes and scripts find what they know. Pure.
 * Source: the tools' own output; state digits are those of VSS_WRITER_STATE. The words of states 4 and 0 are ours.
 */
import { type ComponentMetadata, fullPath, type WriterMetadata } from '../vss/components.ts'
import { type WriterFailureCode, type WriterState, writerFailures, writerStates } from '../vss/vocabulary.ts'

export interface ListedWriter {
  readonly writer: { readonly id: string; readonly instanceId: string; readonly name: string }
  readonly state: WriterState
  readonly lastError?: WriterFailureCode
  /** What it answered to Identify; only the detailed listing looks at it. */
  readonly metadata?: WriterMetadata
}

const stateWords: Readonly<Partial<Record<WriterState, string>>> = {
  unknown: 'Unknown',
  stable: 'Stable',
  'waiting-for-freeze': 'Waiting for freeze',
  'waiting-for-thaw': 'Frozen',
  'waiting-for-post-snapshot': 'Waiting for post-snapshot',
  'waiting-for-backup-complete': 'Waiting for completion',
}

export function renderWriters(writers: readonly ListedWriter[], version: string): string {
  const blocks = writers.map(({ writer, state, lastError }) => [
    `Writer name: '${printable(writer.name)}'`,
    `   Writer Id: {${printable(writer.id)}}`,
    `   Writer Instance Id: {${printable(writer.instanceId)}}`,
    `   State: [${writerStates.indexOf(state)}] ${stateWords[state] ?? 'Failed'}`,
    `   Last error: ${lastError === undefined ? 'No error' : writerFailures[lastError].lastError}`,
  ])
  return joinBlocks(version, blocks)
}

export function renderWritersDetailed(writers: readonly ListedWriter[], version: string): string {
  const blocks = writers.map(({ writer, metadata }) => [
    `* WRITER "${printable(writer.name)}"`,
    `    - Writer ID   = {${printable(writer.id)}}`,
    `    - Writer instance ID = {${printable(writer.instanceId)}}`,
    ...(metadata?.components ?? []).flatMap((component) => describeComponent(component, writer.name)),
  ])
  return joinBlocks(version, blocks)
}

function describeComponent(component: ComponentMetadata, writerName: string): string[] {
  const paths = [...new Set(component.files.map(({ path }) => path))]
  const lines = [
    `- Name: ${component.name}`,
    `- Logical path: ${component.logicalPath}`,
    `- Full path: ${fullPath(component)}`,
    `- Caption: ${component.caption}`,
    `- Type: ${component.type === 'database' ? 'VSS_CT_DATABASE [1]' : 'VSS_CT_FILEGROUP [2]'}`,
    `- Is selectable: ${truth(component.selectable)}`,
    `- Is top level: ${truth(component.logicalPath === '')}`,
    `- Notify on backup complete: ${truth(component.notifyOnBackupComplete)}`,
    ...component.obstacles.map((obstacle) => `- Can not be backed up: ${obstacle}`),
    '- Components:',
    ...component.files.map(({ path, filespec }) => `    - File List: Path = ${path}, Filespec = ${filespec}`),
    '- Paths affected by this component:',
    ...paths.map((path) => `    - ${path}`),
    '- Volumes affected by this component:',
    ...component.volumes.map(({ id, name }) => `    - ${id} [${name}]`),
    '- Component Dependencies:',
  ]
  const head = `    + Component "${printable(writerName)}:${printable(fullPath(component))}"`
  return [head, ...lines.map((line) => `        ${printable(line).trimEnd()}`)]
}

function joinBlocks(version: string, blocks: readonly string[][]): string {
  const banner = `umbra ${version} - Volume Shadow Copy writers of this host`
  return [banner, ...blocks.map((lines) => lines.join('\n'))].join('\n\n').concat('\n')
}

const truth = (value: boolean) => (value ? 'TRUE' : 'FALSE')

/** Names come from guests and hosts: none of them may steer the terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, '?')
}
