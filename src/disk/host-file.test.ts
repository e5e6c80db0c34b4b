/**
 * A file of the host keeps the contract of disks. See test/contract/block-device.contract.ts.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
import { blockDeviceContract, blockSinkContract } from '../../test/contract/block-device.contract.ts'
import { createHostFile, openHostFile } from './host-file.ts'

const folder = await mkdtemp(join(tmpdir(), 'umbra-host-file-'))
after(() => rm(folder, { recursive: true }))
let count = 0
const newPath = () => join(folder, String(++count))

blockDeviceContract('a file of the host', async (content) => {
  const path = newPath()
  await writeFile(path, content)
  return openHostFile(path)
})
blockSinkContract('a file of the host', (size) => createHostFile(newPath(), size))
