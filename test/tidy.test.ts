/**
 * The house rules that no compiler knows: who may import whom, names, headers, sizes, time. Approximate where a parser
 * would be needed, and never longer than 200 lines: when it needs more, buy a linter instead.
 */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, dirname, join, normalize, relative } from 'node:path'
import { describe, it } from 'node:test'

const root = join(import.meta.dirname, '..')

function filesUnder(folder: string, extension: string): string[] {
  if (!existsSync(join(root, folder))) return []
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(extension))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .sort()
}

const read = (file: string) => readFileSync(join(root, file), 'utf8')
const sources = filesUnder('src', '.ts')
const production = sources.filter((file) => !file.endsWith('.test.ts'))
const everything = [...sources, ...['test', 'bench', 'scripts', 'sample-guest'].flatMap((it) => filesUnder(it, '.ts'))]
const pages = [
  ...readdirSync(root).filter((name) => name.endsWith('.md')),
  ...['docs', 'sample-guest', 'test', 'bench', 'changes'].flatMap((folder) => filesUnder(folder, '.md')),
]

/** Every file that breaks a rule is named, not only the first. */
function breaches(files: readonly string[], find: (text: string, file: string) => readonly string[]): void {
  const found = files.flatMap((file) => find(read(file), file).map((breach) => `${file}: ${breach}`))
  assert.deepEqual(found, [])
}

/** `folder`, a single file of a folder, or `type` and either: only its types. `*` is everything. */
const mayImport: Readonly<Record<string, readonly string[]>> = {
  base: ['base', 'errors.ts'],
  'errors.ts': ['base', 'errors'],
  errors: ['errors'],
  'config.ts': ['base', 'errors.ts', 'vm/profile.ts', 'vss/vocabulary.ts'],
  disk: ['disk', 'base', 'errors.ts'],
  vss: ['vss', 'base', 'errors.ts', 'type disk/block-device.ts', 'type disk/extents.ts'],
  vm: ['vm', 'vss', 'type disk', 'base', 'errors.ts'],
  volumes: ['volumes', 'disk/block-device.ts', 'base', 'errors.ts'],
  repository: ['repository', 'disk/block-device.ts', 'base', 'errors.ts'],
  'guest-files': [
    'guest-files',
    'files/extract-tree.ts',
    'files/tar-reader.ts',
    'type files/tree-listing.ts',
    'type disk/block-device.ts',
    'base',
    'errors.ts',
  ],
  files: ['files', 'vss', 'disk', 'base', 'errors.ts'],
  libvirt: [
    'libvirt',
    'vm/hypervisor.ts',
    'vm/guest-requestor.ts',
    'vm/backup-job.ts',
    'vm/machine-needs.ts',
    'vss',
    'disk',
    'base',
    'errors.ts',
  ],
  'host-volumes': ['host-volumes', 'vm/hypervisor.ts', 'vss', 'disk', 'base', 'errors.ts'],
  cluster: ['cluster', 'vm/cluster.ts', 'base', 'errors.ts', 'libvirt/xml-dom.ts'],
  requester: ['requester', 'vss', 'disk', 'repository', 'base', 'errors.ts'],
  server: ['server', 'requester', 'vss', 'repository', 'base', 'compose.ts', 'config.ts', 'errors.ts'],
  web: ['web', 'type server/contract.ts'],
  'compose.ts': ['*'],
  cli: ['*'],
}

interface Import {
  readonly isType: boolean
  readonly from: string
}

const importsOf = (text: string): Import[] =>
  [...text.matchAll(/^(?:import|export)\s+(type\s+)?(?:[^'";]*?\sfrom\s+)?'([^']+)'|\bimport\('([^']+)'\)/gm)].map(
    ([, type, from, dynamic]) => ({ isType: type !== undefined, from: from ?? dynamic ?? '' }),
  )

describe('imports', () => {
  it('go only in the directions of ARCHITECTURE.md', () => {
    breaches(production, (text, file) => {
      const here = file.split('/')[1] ?? ''
      const allowed = mayImport[here]
      if (allowed === undefined) return [`${here} is not in the table of this test`]
      const own = importsOf(text).filter(({ from }) => from.startsWith('.'))
      return own.flatMap(({ isType, from }) => {
        const target = relative('src', normalize(join(dirname(file), from)))
        const fits = allowed.some((rule) => {
          const wanted = rule.replace(/^type /, '')
          if (rule.startsWith('type ') && !isType) return false
          return wanted === '*' || target === wanted || target.startsWith(`${wanted}/`)
        })
        return fits ? [] : [`imports ${isType ? 'the types of ' : ''}${target}`]
      })
    })
  })

  it('keep the protocol pure: vss knows no Node', () => {
    const vss = production.filter((file) => file.startsWith('src/vss/'))
    assert.ok(vss.length > 0)
    breaches(vss, (text) => importsOf(text).flatMap(({ from }) => (from.startsWith('node:') ? [from] : [])))
  })

  it('leave out barrels', () => {
    breaches(production, (text, file) => [
      ...(basename(file) === 'index.ts' ? ['is a barrel'] : []),
      ...[...text.matchAll(/^export \* .*$/gm)].map(([line]) => line),
    ])
  })
})

describe('names', () => {
  it('of files say what is in them, in kebab-case', () => {
    const saysNothing = /(^|-)(utils?|helpers?|common|misc|manager|types)\.(test\.)?ts$/
    breaches(everything, (_, file) => [
      ...(saysNothing.test(basename(file)) ? ['says nothing'] : []),
      ...(/^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z]+)?\.ts$/.test(basename(file)) ? [] : ['is not kebab-case']),
    ])
  })

  it('leave "snapshot" to VSS: ours are shadow copies, overlays, backup stamps, recovery points', () => {
    const wordsOfVss =
      /SnapshotSet|[cC]hildSnapshot|PrepareForSnapshot|PrepareSnapshot|PostSnapshot|[sS]napshot(Contexts?|Attributes)|Snapshots$/g
    const ours = production.filter((file) => file !== 'src/libvirt/protocol.ts') // which speaks libvirt's language
    breaches(ours, (text) =>
      [...text.matchAll(/^export (?:async |abstract )*(?:function\*?|class|const|interface|type) (\w+)/gm)]
        .map(([, name = '']) => name)
        .filter((name) => /snapshot/i.test(name.replace(wordsOfVss, ''))),
    )
  })
})

describe('files', () => {
  it('open by saying what they are', () => {
    breaches(production, (text) => (/^\/\*\*(\n \*)? \S/.test(text) ? [] : ['does not open with a block comment']))
  })

  it('are at most 400 lines, functions at most 70', () => {
    breaches(production, (text) => {
      const lines = text.split('\n')
      const long = lines.length > 401 ? [`has ${lines.length - 1} lines`] : []
      return [...long, ...longFunctions(lines)]
    })
  })

  it('swallow nothing and put nothing off', () => {
    const putOff = new RegExp(`\\b(${['TO', 'FIX'].join('DO|')}ME|TO${'DO'})\\b`)
    breaches([...everything, ...pages], (text) => [
      ...(/catch\s*(\([^)]*\))?\s*\{\s*\}|\.catch\(\(\w*\) => \{\s*\}\)/.test(text) ? ['swallows an error'] : []),
      ...(putOff.exec(text)?.slice(0, 1) ?? []),
    ])
  })

  it('do not ask where they lie: in the package that is another place', () => {
    const others = production.filter((file) => file !== 'src/base/own-programs.ts')
    breaches(others, (text) => [...text.matchAll(/\bimport\.meta\.\w+/g)].map(([use]) => use))
  })

  it('take time from the clock', () => {
    breaches(production, (text, file) => {
      if (file === 'src/base/clock.ts' || file in readTheTime) return []
      return [...text.matchAll(/\bDate\.now\(\)|\bnew Date\(\s*\)|\bperformance\.now\(\)/g)].map(([call]) => call)
    })
    const idle = Object.keys(readTheTime).filter((file) => !/performance\.now\(\)/.test(read(file)))
    assert.deepEqual(idle, [], 'these exceptions are not needed any more')
  })
})

const patience = 'how long a real daemon is waited for; no simulation ever runs it'
const readTheTime: Readonly<Record<string, string>> = {
  'src/libvirt/connection.ts': patience,
  'src/libvirt/guest-agent.ts': patience,
  'src/libvirt/merge-overlay.ts': patience,
  'src/libvirt/overlay-file.ts': patience,
}

/** Functions at the top level and in classes: from their first line to the brace at the same indentation. */
function longFunctions(lines: readonly string[]): string[] {
  const begins =
    /^(?:export )?(?:async )?function\*? ?(\w+)|^(?:export )?const (\w+) = (?:async )?\(.*(?:=> \{|\()$|^ {2}(?:private |static |override |readonly |async |get |set |\*)*(#?\w+)(?:<.*>)?\(.*[{(]$/
  return lines.flatMap((line, index) => {
    const name = begins.exec(line)?.slice(1).find(Boolean)
    if (name === undefined || ['if', 'for', 'while', 'switch'].includes(name)) return []
    const end = new RegExp(`^ {${line.search(/\S/)}}[})](?!.*[{(]$)`)
    const length = lines.slice(index).findIndex((one, at) => at > 0 && end.test(one)) + 1
    return length > 70 ? [`${name} has ${length} lines`] : []
  })
}

describe('pages', () => {
  it('link to what is there', () => {
    breaches(pages, (text, file) => {
      const prose = text.replace(/^(```|~~~)[\s\S]*?^\1/gm, '').replace(/`[^`\n]*`/g, '')
      return [...prose.matchAll(/\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)/g)]
        .map(([, target = '']) => target)
        .filter((target) => !/^[a-z]+:|^#/i.test(target))
        .filter((target) => !existsSync(join(root, dirname(file), decodeURI(target.replace(/#.*/, '')))))
        .map((target) => `links to ${target}`)
    })
  })
})
