/**
 * One version of a volume group's metadata: its text, its tree, and what of it this program relies upon, checked.
 * What it does not need (thin pools, caches, mirrors beside our volumes) stays unread in the text.
 * Source: lvm2's lib/format_text/export.c and import_vsn1.c; lvmsystemid(7), lvmlockd(8), vgexport(8) for the refusals.
 */
import * as z from 'zod'
import { type Entry, isSection, LvmTextError, parseLvmText, plainOf, type Section } from './lvm-text.ts'

const count = z.int().min(0)
const words = z.array(z.string()).default([])
const uuid = z.string().transform((text) => text.replaceAll('-', ''))

const segmentShape = z.object({ start_extent: count, extent_count: count.min(1), type: z.string() })

/** `stripes` names a physical volume and its first extent, for each stripe. */
const stripedShape = segmentShape.extend({
  type: z.literal('striped'),
  stripe_count: z.int().min(1).max(128),
  stripe_size: count.default(0),
  stripes: z.array(z.union([z.string(), count])).max(256),
})
export type StripedSegment = z.infer<typeof stripedShape>

const volumeShape = z.looseObject({ id: z.string(), status: words, tags: words, segment_count: count.max(65536) })

const groupShape = z.looseObject({
  id: z.string().min(1),
  seqno: count.max(0xfffffff0),
  status: words,
  flags: words,
  extent_size: count.min(1),
  lock_type: z.string().optional(),
  physical_volumes: z.record(
    z.string(),
    z.object({ id: uuid, status: words, flags: words, pe_start: count, pe_count: count }),
  ),
  logical_volumes: z.record(z.string(), volumeShape).default({}),
})

export type GroupShape = z.infer<typeof groupShape>

export interface Group {
  readonly name: string
  readonly text: string
  readonly root: Section
  readonly section: Section
  readonly shape: GroupShape
}

/** Throws LvmTextError with the reason. */
export function parseGroup(padded: string): Group {
  const end = padded.indexOf('\0')
  const text = end === -1 ? padded : padded.slice(0, end)
  const root = parseLvmText(text)
  const sections = [...root].filter((one): one is [string, Entry & { content: Section }] => isSection(one[1].content))
  const [only, ...others] = sections
  if (only === undefined || others.length > 0) throw new LvmTextError('its metadata is not that of one group')
  if (root.get('contents')?.content !== 'Text Format Volume Group' || root.get('version')?.content !== 1) {
    throw new LvmTextError('its metadata is of another format')
  }
  const [name, { content: section }] = only
  return { name, text, root, section, shape: shaped(groupShape, plainOf(section), name) }
}

function shaped<T>(shape: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = shape.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new LvmTextError(`${[what, ...(issue?.path ?? [])].join('/')}: ${issue?.message ?? 'invalid'}`)
}

/** Why nothing may be changed in the group; undefined when it may be. */
export function obstacleOf({ name, shape }: Group): string | undefined {
  const marks = [...shape.status, ...shape.flags]
  if (marks.includes('EXPORTED')) return `the group ${name} is exported`
  if (marks.includes('CLUSTERED')) return `the group ${name} is clustered`
  if (marks.includes('PARTIAL')) return `the group ${name} is partial`
  if (!marks.includes('WRITE')) return `the group ${name} is read-only`
  if (shape.lock_type && shape.lock_type !== 'none') return `the group ${name} is shared (${shape.lock_type})`
  const missing = Object.values(shape.physical_volumes).some((pv) => [...pv.status, ...pv.flags].includes('MISSING'))
  return missing ? `a physical volume of the group ${name} was missing when it was last changed` : undefined
}

/** Every segment of a volume, in order; for one that is linear or striped all the way. */
export function stripedSegments({ name, shape }: Group, volume: string): readonly StripedSegment[] {
  const facts = shape.logical_volumes[volume]
  if (facts === undefined) throw new LvmTextError(`there is no volume ${name}/${volume}`)
  const marks = facts.status.filter((mark) => !['READ', 'WRITE', 'VISIBLE', 'FIXED_MINOR'].includes(mark))
  if (marks.length > 0) throw new LvmTextError(`${name}/${volume} is in the state ${marks.join(', ')}`)
  const segments: StripedSegment[] = []
  let next = 0
  for (let number = 1; number <= facts.segment_count; number++) {
    const segment = shaped(stripedShape, facts[`segment${number}`], `${name}/${volume}/segment${number}`)
    const { start_extent, extent_count, stripe_count, stripe_size, stripes } = segment
    if (start_extent !== next) throw new LvmTextError(`${name}/${volume} has a gap at extent ${next}`)
    const sound =
      stripes.length === 2 * stripe_count &&
      extent_count % stripe_count === 0 &&
      (stripe_count === 1 || (stripe_size > 0 && shape.extent_size % stripe_size === 0))
    if (!sound) throw new LvmTextError(`the stripes of ${name}/${volume} do not fit together`)
    segments.push(segment)
    next += extent_count
  }
  if (segments.length === 0) throw new LvmTextError(`${name}/${volume} is empty`)
  return segments
}

/** What of the physical volumes each volume holds, as far as it is linear or striped: name and extents. */
export function* usedExtents({ shape }: Group): Generator<{ pv: string; first: number; count: number }> {
  for (const facts of Object.values(shape.logical_volumes)) {
    for (let number = 1; facts[`segment${number}`] !== undefined; number++) {
      const { success, data } = stripedShape.safeParse(facts[`segment${number}`])
      if (!success) continue
      for (let at = 0; at + 1 < data.stripes.length; at += 2) {
        const first = data.stripes[at + 1]
        if (typeof first !== 'number') throw new LvmTextError('the stripes of a volume do not fit together')
        yield { pv: String(data.stripes[at]), first, count: data.extent_count / data.stripe_count }
      }
    }
  }
}

/**
 * The text of the next version, without those volumes. Every byte that is not concerned stays. The description told the
 * last command and with it the tags.
 */
export function textWithout({ text, root, section, shape }: Group, volumes: readonly string[]): string {
  const seqno = section.get('seqno')
  const list = section.get('logical_volumes')?.content
  if (seqno === undefined || list === undefined || !isSection(list)) throw new LvmTextError('it has no volumes')
  const edits = [{ begin: seqno.valueBegin, end: seqno.end, by: String(shape.seqno + 1) }]
  const description = root.get('description')
  if (description !== undefined) {
    edits.push({ begin: description.valueBegin, end: description.end, by: '"Snapshot removed."' })
  }
  for (const volume of volumes) {
    const entry = list.get(volume)
    if (entry === undefined) throw new LvmTextError(`there is no volume ${volume}`)
    edits.push({ ...withBlankLine(text, entry), by: '' })
  }
  edits.sort((one, other) => other.begin - one.begin)
  return edits.reduce((now, { begin, end, by }) => now.slice(0, begin) + by + now.slice(end), text)
}

/** With its indentation and the empty line before it. A line before that may be a comment: it keeps its end. */
function withBlankLine(text: string, { begin, end }: Entry): { begin: number; end: number } {
  let from = begin
  while (text[from - 1] === '\t' || text[from - 1] === ' ') from--
  return { begin: text.endsWith('\n\n', from) ? from - 1 : from, end }
}
