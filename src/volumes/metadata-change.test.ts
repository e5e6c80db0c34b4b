import assert from 'node:assert/strict'
import { it } from 'node:test'
import { memoryDevice, randomNumbers } from '../../test/sim/volume-images.ts'
import { wholeDisk } from './disk-stretch.ts'
import { placeText } from './metadata-change.ts'
import { ringPieces } from './physical-volume.ts'

it('a new text never touches the one that counts, and is refused only when it must', () => {
  const stretch = wholeDisk({ name: 'vda', device: memoryDevice(Buffer.alloc(32768)) })
  const area = { stretch, offset: 4096, length: 8192, ignored: false }
  const random = randomNumbers(7)
  let wraps = 0
  for (let round = 0; round < 1000; round++) {
    const current = { offset: 512 + random(7680), length: 1 + random(5000) }
    const length = 1 + random(5000)
    const taken = new Uint8Array(32768)
    const mark = (offset: number, size: number) => {
      for (const piece of ringPieces(area, offset, size)) {
        assert.ok(piece.offset >= 4096 + 512 && piece.offset + piece.length <= 4096 + 8192)
        for (let at = piece.offset; at < piece.offset + piece.length; at++) {
          taken[at] = (taken[at] ?? 0) + 1
          if ((taken[at] ?? 0) > 1) assert.fail(JSON.stringify({ current, length, at }))
        }
      }
    }
    mark(current.offset, current.length)
    try {
      const { offset } = placeText({ ...area, current }, length)
      assert.equal(offset % 512, 0)
      if (offset + length > 8192) wraps++
      mark(offset, length)
    } catch (error) {
      if ((error as { code?: string }).code !== 'VOLUMES_NOT_UNDERSTOOD') throw error
      assert.ok(length > 7680 - current.length - 512, JSON.stringify({ current, length }))
    }
  }
  assert.ok(wraps > 30)
})
