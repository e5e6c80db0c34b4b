import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { encodeWord, untilMark } from './helper-vm-files.ts'

const mark = 'a1'.repeat(32)
const broken = { code: 'HELPER_VM_FAILED' }

async function* inPieces(bytes: Buffer, size: number) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

async function read(bytes: Buffer, size: number) {
  const parts: Buffer[] = []
  const answer = untilMark(inPieces(bytes, size), mark)
  for (;;) {
    const { done, value } = await answer.next()
    if (done) return { content: Buffer.concat(parts), end: value }
    parts.push(Buffer.from(value))
  }
}

describe('an answer of the helper VM', () => {
  it('is everything before the mark, in whatever pieces it comes', async () => {
    const almost = `\n${mark.slice(0, -1)}0\n\n${mark}x\n`
    const content = Buffer.concat([randomBytes(300), Buffer.from(almost), randomBytes(300), Buffer.from('\n\n')])
    const whole = Buffer.concat([content, Buffer.from(`\n${mark}\nnote\tone \u001b[31m\nnote\ttwo\nexit\t2\n`)])
    for (const size of [1, 3, 64, 65, 66, 67, 1000, 100_000]) {
      const { content: found, end } = await read(whole, size)
      assert.ok(found.equals(content), String(size))
      assert.deepEqual(end, { exit: 2, notes: ['one  [31m', 'two'] })
    }
  })

  it('may be empty, and must have an end', async () => {
    const { content, end } = await read(Buffer.from(`\n${mark}\nexit\t0\n`), 10)
    assert.deepEqual([content.length, end], [0, { exit: 0, notes: [] }])
    const lies = [
      ...['', 'content', `\n${mark}\n`, `\n${mark}\nnote\tx\n`, `\n${mark}\nhello\n`, `\n${mark}\nexit\t-1\n`],
      ...[
        `\n${mark}\nexit\t0\nmore\n`,
        `\n${mark}\n${'note\tx\n'.repeat(1000)}exit\t0\n`,
        `\n${mark}\nnote\t${'x'.repeat(9000)}\n`,
      ],
    ]
    for (const lie of lies) await assert.rejects(read(Buffer.from(lie), 50), broken, lie.slice(0, 90))
  })
})

describe('a word for the helper VM', () => {
  it('holds any bytes, and nothing that a shell or a line would take', () => {
    const every = Buffer.from(Array.from({ length: 255 }, (_, i) => i + 1)).toString('latin1')
    for (const word of ['./etc/passwd', './a b\n\\$(x)"\'', every]) {
      const encoded = encodeWord(word)
      assert.match(encoded, /^[A-Za-z0-9._/\\-]+$/)
      const decoded = execFileSync('sh', ['-c', `printf '%bx' "$1"`, 'sh', encoded], { encoding: 'latin1' })
      assert.equal(decoded, `${word}x`)
    }
  })
})
