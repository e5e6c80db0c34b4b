/**
 * The page of errors: docs/errors.md is the catalogue in src/errors.ts, written out for operators. After a change there:
 *
 *     node test/errors.test.ts --write
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { type ErrorCode, type ErrorEntry, errorCatalogue } from '../src/errors.ts'

const root = join(import.meta.dirname, '..')
const page = join(root, 'docs', 'errors.md')
const catalogue = Object.entries(errorCatalogue) as [ErrorCode, ErrorEntry][]

const retryWords: Readonly<Record<ErrorEntry['retry'], string>> = {
  retry: 'as it is',
  'reduce-load': 'with less at once',
  'add-volumes': 'with more volumes',
  never: 'no',
}

function renderPage(): string {
  const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('<', '&lt;')
  const rows = catalogue.map(([code, { message, hint, retry, httpStatus, exitCode }]) => {
    const filled = cell(message).replace(/\{(\w+)\}/g, '*$1*')
    return `| \`${code}\` | ${filled} | ${cell(hint)} | ${retryWords[retry]} | ${httpStatus} | ${exitCode} |`
  })
  return `# Errors

Each failure has a code that does not change, one sentence that says what happened, and one that says what to do about
it. Words in *italics* are filled in. On a terminal:

    umbra: there is no VM web1; there are: db01, web01
      -> See umbra vms.

With \`--json\`, on standard output:

    {"error": {"code": "VM_NOT_FOUND", "message": "…", "hint": "…", "context": {"vm": "web1", "known": "db01, web01"}}}

\`error.cleanup\` is there when something could not be put back, and says what. "Again": does it help to try again?

| code | what happened | what to do | again | HTTP | exit code |
|---|---|---|---|---|---|
${rows.join('\n')}

Two codes are of no failure. \`CANCELLED\` (exit code 130): the user stopped it, and it was put back. \`BUG\` (exit code 1): a
mistake in Umbra itself, told with a trace on standard error.

This page is written by \`node test/errors.test.ts --write\` from \`src/errors.ts\`.
`
}

const placeholders = (message: string) => [...message.matchAll(/\{(\w+)\}/g)].map(([, key = '']) => key)

const sources = readdirSync(join(root, 'src'), { recursive: true, withFileTypes: true })
  .filter(({ name }) => name.endsWith('.ts') && !name.endsWith('.test.ts') && name !== 'errors.ts')
  .map(({ parentPath, name }) => ({ name, text: readFileSync(join(parentPath, name), 'utf8') }))

interface Call {
  readonly where: string
  readonly code: string
  /** Undefined when they can not be told from the text: a spread, a variable. */
  readonly keys: readonly string[] | undefined
}

/** Every `failure('CODE', { … })` of the sources, read without a parser. */
function callsOfFailure(): Call[] {
  return sources.flatMap(({ name, text }) =>
    [...text.matchAll(/\bfailure\(\s*'([A-Z_]+)'\s*(,\s*\{|,|\))/g)].map((found) => {
      const [all, code = '', next = ''] = found
      const where = `${name} ${code}`
      if (next === ')') return { where, code, keys: [] }
      if (!next.endsWith('{')) return { where, code, keys: undefined }
      return { where, code, keys: keysOfLiteral(text, found.index + all.length) }
    }),
  )
}

/** The keys of the object literal whose text begins at `start`, behind its brace. */
function keysOfLiteral(text: string, start: number): string[] | undefined {
  let depth = 1
  let top = '' // the literal without what is nested in it
  for (let at = start; depth > 0 && at < text.length; at++) {
    const character = text[at] ?? ''
    if ('}])'.includes(character)) depth--
    if (depth === 1 && !'}])'.includes(character)) top += character
    if ('{[('.includes(character)) depth++
  }
  if (top.includes('...')) return undefined
  return top.split(',').flatMap((part) => /^\s*(\w+)\s*(?::|$)/.exec(part)?.[1] ?? [])
}

describe('the catalogue of errors', () => {
  it('is the page in docs/errors.md', () => {
    const written = readFileSync(page, 'utf8')
    const codes = [...written.matchAll(/^\| `([A-Z_]+)`/gm)].map(([, code]) => code)
    const all: string[] = catalogue.map(([code]) => code)
    assert.deepEqual(codes, all, 'run: node test/errors.test.ts --write')
    assert.equal(written, renderPage(), 'run: node test/errors.test.ts --write')
  })

  it('has messages that go into a line, and hints that are sentences', () => {
    for (const [code, { message, hint }] of catalogue) {
      assert.doesNotMatch(message, /[.!\n]$/, code)
      assert.match(hint, /^[A-Z][^\n]*\.$|^umbra [^\n]*\.$/, code)
    }
  })

  it('is used: every code somewhere in src', () => {
    const unused = catalogue
      .map(([code]) => code)
      .filter((code) => !sources.some(({ text }) => text.includes(`'${code}'`)))
    assert.deepEqual(unused, [])
  })

  it('gets a value for every placeholder of a message', () => {
    const calls = callsOfFailure()
    assert.ok(calls.length > 50, 'the calls are not found any more')
    const missing = calls.flatMap(({ where, code, keys }) => {
      const entry: ErrorEntry | undefined = errorCatalogue[code as ErrorCode]
      if (entry === undefined) return [`${where}: there is no such code`]
      if (keys === undefined) return []
      return placeholders(entry.message)
        .filter((key) => !keys.includes(key))
        .map((key) => `${where}: ${key}`)
    })
    assert.deepEqual(missing, [])
  })
})

if (process.argv.includes('--write')) writeFileSync(page, renderPage())
