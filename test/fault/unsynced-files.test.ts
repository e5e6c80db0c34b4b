/**
 * The model of a disk that the power-cut tests stand on: what is lost and what is not, as fsync(2) says.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { makeSyncedFolder, makeSyncedPath, realFiles } from '../../src/repository/storage/repository-files.ts'
import { type FileFault, UnsyncedFiles } from './unsynced-files.ts'
import { anySubset, everything, namesOnly, nothingUnsynced } from './unsynced-files-tree.ts'

async function write(files: UnsyncedFiles, path: string, content: string, sync: boolean): Promise<void> {
  const file = await files.create(path)
  await file.write(Buffer.from(content))
  if (sync) await file.sync()
  await file.close()
}

async function read(files: UnsyncedFiles, path: string): Promise<string | undefined> {
  const file = await files.openToRead(path).catch(() => undefined)
  if (file === undefined) return undefined
  const content = Buffer.alloc(await file.sizeBytes())
  await file.read(content, 0, 0)
  return content.toString()
}

test('a synced file in a folder that was not synced has no name after a power cut, and all of its bytes if it has', async () => {
  const files = new UnsyncedFiles()
  await write(files, '/a', 'content', true)
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/a'), undefined)
  for (const survival of namesOnly) assert.equal(await read(files.afterPowerCut(survival), '/a'), 'content')
  await files.syncFolder('/')
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/a'), 'content')
})

test('a file that was not synced has its name and not its bytes when the folder was', async () => {
  const files = new UnsyncedFiles()
  await write(files, '/a', 'content', false)
  await files.syncFolder('/')
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/a'), '')
  const found: (string | undefined)[] = []
  for (const survival of namesOnly) found.push(await read(files.afterPowerCut(survival), '/a'))
  assert.deepEqual(found, ['con', '\0'.repeat(7), 'what la'])
  assert.equal(await read(files.afterPowerCut(everything), '/a'), 'content')
})

test('a name that was taken away is back unless the folder was synced', async () => {
  const files = new UnsyncedFiles()
  await write(files, '/a', 'content', true)
  await files.syncFolder('/')
  await files.remove('/a')
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/a'), 'content')
  await files.syncFolder('/')
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/a'), undefined)
})

test('a folder is lost with all that was synced in it until its own name is synced', async () => {
  const files = new UnsyncedFiles()
  await files.makeFolder('/folder')
  await write(files, '/folder/a', 'content', true)
  await files.syncFolder('/folder')
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/folder/a'), undefined)
  await makeSyncedFolder('/folder', files)
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/folder/a'), 'content')
})

test('all of a path is durable, also the part that another process made and did not sync', async () => {
  const files = new UnsyncedFiles()
  await files.makeFolder('/a')
  await makeSyncedPath('/a/b/c', files.nextProcess())
  const found = await files.afterPowerCut(nothingUnsynced).stat('/a/b/c')
  assert.equal(found.isFolder, true)
})

test('a file whose sync has failed is lost, whatever a later sync says', async () => {
  const files = new UnsyncedFiles({ at: 3, fault: 'EIO' })
  const file = await files.create('/a')
  await file.write(Buffer.from('content'))
  await assert.rejects(file.sync(), { code: 'EIO' })
  await file.sync()
  await files.syncFolder('/')
  assert.equal(await read(files.afterPowerCut(nothingUnsynced), '/a'), '')
})

test('any subset of the names may survive, the same for one seed', async () => {
  const files = new UnsyncedFiles()
  for (let number = 0; number < 20; number += 1) await write(files, `/${number}`, 'content', true)
  const survivors = async (seed: number) => {
    const names: string[] = []
    for await (const { name } of files.afterPowerCut(anySubset(seed)).entries('/')) names.push(name)
    return names
  }
  const some = await survivors(1)
  assert.ok(some.length > 0 && some.length < 20)
  assert.deepEqual(await survivors(1), some)
  assert.notDeepEqual(await survivors(2), some)
})

test('nothing is done after the power is gone, and a full disk gives back what is removed only', async () => {
  const dead = new UnsyncedFiles({ at: 1, fault: 'power cut' })
  await assert.rejects(dead.makeFolder('/a'), { code: 'EIO' })
  await assert.rejects(dead.stat('/'), /the power is gone/)
  assert.equal((await dead.nextProcess().stat('/a')).isFolder, true)

  const full = new UnsyncedFiles({ at: 2, fault: 'ENOSPC' })
  await full.makeFolder('/a')
  await assert.rejects(full.makeFolder('/b'), { code: 'ENOSPC' })
  await assert.rejects(full.create('/c'), { code: 'ENOSPC' })
  await full.removeFolder('/a')
  full.freeSpace()
  await full.makeFolder('/b')
})

test('an operation that failed was done or not, as the fault says', async () => {
  const wasDone = async (fault: FileFault) => {
    const files = new UnsyncedFiles({ at: 1, fault })
    await assert.rejects(files.makeFolder('/a'), { code: 'EIO', syscall: 'mkdir' })
    return files.stat('/a').then(
      () => true,
      () => false,
    )
  }
  assert.equal(await wasDone('EIO'), false)
  assert.equal(await wasDone('EIO after the deed'), true)
})

/** The codes that the product looks at are the same as the system's. */
test('the model refuses as the real file system does', async () => {
  const { mkdtemp, rm } = await import('node:fs/promises')
  const { tmpdir } = await import('node:os')
  const folder = await mkdtemp(`${tmpdir()}/umbra-files-`)
  const model = new UnsyncedFiles()
  await makeSyncedPath(folder, model)
  try {
    const codes = (files: typeof realFiles) => refusals(files, folder)
    assert.deepEqual(await codes(model), await codes(realFiles))
  } finally {
    await rm(folder, { recursive: true })
  }
})

async function refusals(files: typeof realFiles, folder: string): Promise<string[]> {
  await files.makeFolder(`${folder}/full`)
  await (await files.create(`${folder}/full/file`)).close()
  const codes: string[] = []
  const told = async (work: Promise<unknown>) => {
    codes.push(
      await work.then(
        () => 'done',
        (error) => error.code,
      ),
    )
  }
  await told(files.openToRead(`${folder}/none`))
  await told(files.openToRead(`${folder}/full/file/below`))
  await told(files.create(`${folder}/full/file`))
  await told(files.create(`${folder}/none/file`))
  await told(files.link(`${folder}/none`, `${folder}/new`))
  await told(files.link(`${folder}/full/file`, `${folder}/full`))
  await told(files.remove(`${folder}/none`))
  await told(files.remove(`${folder}/full/file/below`))
  await told(files.makeFolder(`${folder}/full`))
  await told(files.makeFolder('/'))
  await told(files.makeFolder(`${folder}/none/folder`))
  await told(files.removeFolder(`${folder}/full`))
  await told(files.removeFolder(`${folder}/none`))
  await told(files.stat(`${folder}/none`))
  await told(files.syncFolder(`${folder}/none`))
  await told(files.syncFolder(`${folder}/full/file`))
  await told(Array.fromAsync(files.entries(`${folder}/none`)))
  await told(files.rename(`${folder}/full/file`, `${folder}/file`))
  await told(
    Array.fromAsync(files.entries(folder)).then((all) =>
      Promise.reject({ code: JSON.stringify(all.sort((one, other) => one.name.localeCompare(other.name))) }),
    ),
  )
  return codes
}
