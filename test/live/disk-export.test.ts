/**
 * Real disk images behind QEMU's own NBD server: the block device contract for each format, locks, and what becomes of
 * the server when things go wrong. Needs qemu-utils, qemu-system-common (qemu-storage-daemon), nbdkit and setpriv.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import type { BlockSink, BlockSource } from '../../src/disk/block-device.ts'
import { createHostFile } from '../../src/disk/host-file.ts'
import { connectNbd, type NbdDevice } from '../../src/disk/nbd-client.ts'
import { exportDisks } from '../../src/libvirt/disk-export.ts'
import {
  backingChain,
  commitImage,
  createImage,
  createOverlay,
  type ImageFormat,
  imageInfo,
} from '../../src/libvirt/disk-image.ts'
import { openImagesAtRest } from '../../src/libvirt/open-images.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import { blockDeviceContract, blockSinkContract, failsAt } from '../contract/block-device.contract.ts'

const mebibyte = 1024 * 1024
const needed = ['qemu-storage-daemon', 'qemu-img', 'nbdkit', 'setpriv']
const missing = needed.filter((program) => spawnSync(program, ['--version']).status !== 0)
const skip = missing.length > 0 && `not installed: ${missing.join(', ')}`

/** A directory that disposal removes. */
async function openDirectory(): Promise<AsyncDisposable & { path: string }> {
  const path = await mkdtemp(join(tmpdir(), 'umbra-'))
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
}

/** The device with its disposal extended to what it stands on. */
function standingOn<Device extends NbdDevice>(device: Device, stack: AsyncDisposableStack): Device {
  const close = device[Symbol.asyncDispose].bind(device)
  stack.defer(close)
  device[Symbol.asyncDispose] = () => stack.disposeAsync()
  return device
}

async function openDisk(image: DiskImage, directory: string, writable: boolean, below?: AsyncDisposableStack) {
  await using stack = new AsyncDisposableStack()
  if (below !== undefined) stack.use(below)
  const served = stack.use(await exportDisks([{ name: 'disk', image }], { directory, writable }))
  return standingOn(await served.open('disk'), stack.move())
}

/** An image with that content, written through an export of its own. */
async function fillImage(
  path: string,
  format: ImageFormat,
  content: Uint8Array,
  directory: string,
): Promise<DiskImage> {
  const image: DiskImage = { format, storage: { file: path } }
  await createImage(path, format, content.length)
  await using disk = await openDisk(image, directory, true)
  for (let at = 0; at < content.length; at += mebibyte) {
    const part = content.subarray(at, at + mebibyte)
    if (part.some((byte) => byte !== 0)) await disk.write(at, part)
  }
  await disk.flush()
  return image
}

async function openImageSource(format: ImageFormat, content: Uint8Array): Promise<BlockSource> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await openDirectory()).path
  const image = await fillImage(join(directory, 'disk'), format, content, directory)
  return openDisk(image, directory, false, stack.move())
}

async function openImageSink(format: ImageFormat, size: number): Promise<BlockSource & BlockSink> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await openDirectory()).path
  const file = join(directory, 'disk')
  await createImage(file, format, size)
  return openDisk({ format, storage: { file } }, directory, true, stack.move())
}

/** An export of an export: what a disk on another host's NBD server looks like. */
async function openNbdOverNbd(content: Uint8Array): Promise<BlockSource> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await openDirectory()).path
  const image = await fillImage(join(directory, 'disk'), 'raw', content, directory)
  const inner = stack.use(await exportDisks([{ name: 'inner', image }], { directory }))
  const nbd = { socketPath: inner.socketPath, exportName: 'inner' }
  return openDisk({ format: 'raw', storage: { nbd } }, directory, false, stack.move())
}

/** nbdkit with a disk in its memory. */
async function openNbdkit(size: number, ...args: string[]): Promise<NbdDevice> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await openDirectory()).path
  const socketPath = join(directory, 's')
  const server = spawn('nbdkit', ['-f', '-U', socketPath, 'memory', String(size), ...args], { stdio: 'ignore' })
  const gone = new Promise((resolve) => server.on('exit', resolve))
  stack.defer(async () => {
    server.kill()
    await gone
  })
  // The socket's file is there a moment before anybody listens.
  let device: NbdDevice | undefined
  await until(async () => {
    device = await connectNbd({ socketPath, exportName: '' }).catch(() => undefined)
    return device !== undefined
  })
  assert.ok(device !== undefined)
  return standingOn(device, stack.move())
}

async function openNbdkitSource(content: Uint8Array, ...args: string[]): Promise<NbdDevice> {
  const disk = await openNbdkit(content.length, ...args)
  await disk.write(0, content)
  return disk
}

async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  for (let i = 0; i < 500; i++) {
    if (await condition()) return
    await setTimeout(10)
  }
  assert.fail('the condition was not met within 5 s')
}

/** True while the process runs; a zombie does not. */
async function isRunning(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z')
  return status.slice(status.lastIndexOf(')') + 2)[0] !== 'Z'
}

/** Not through QEMU: a raw file is read as what it is. */
async function openAtRest(content: Uint8Array): Promise<BlockSource> {
  await using stack = new AsyncDisposableStack()
  const { path } = stack.use(await openDirectory())
  const file = join(path, 'raw')
  await using sink = await createHostFile(file, content.length)
  for (let at = 0; at < content.length; at += 65_536) {
    const part = content.subarray(at, at + 65_536)
    if (part.some((byte) => byte !== 0)) await sink.write(at, part) // the rest stays a hole
  }
  const images = stack.use(
    await openImagesAtRest([{ name: 'a', image: { format: 'raw', storage: { file } } }], { directory: path }),
  )
  const source = await images.open('a')
  const owned = stack.move()
  return { ...source, extents: source.extents.bind(source), [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

describe('disk images behind QEMU', { skip, concurrency: false }, () => {
  for (const format of ['raw', 'qcow2', 'vpc', 'vhdx'] as const) {
    blockDeviceContract(`a ${format} image`, (content) => openImageSource(format, content))
    blockSinkContract(`a ${format} image`, (size) => openImageSink(format, size))
  }
  blockDeviceContract('a raw image at rest', openAtRest)
  blockDeviceContract('an NBD disk behind QEMU', openNbdOverNbd)
  blockDeviceContract('nbdkit', (content) => openNbdkitSource(content))
  blockDeviceContract('nbdkit without structured replies', (content) => openNbdkitSource(content, '--no-sr'))
  blockDeviceContract('nbdkit with small blocks only', (content) =>
    openNbdkitSource(
      content,
      '--filter=blocksize-policy',
      ...['blocksize-minimum=1', 'blocksize-preferred=4096', 'blocksize-maximum=65536', 'blocksize-error-policy=error'],
    ),
  )
  blockSinkContract('nbdkit', (size) => openNbdkit(size))
})

describe('exportDisks', { skip }, () => {
  it('serves all disks of a VM from one process, each under its name', async () => {
    await using directory = await openDirectory()
    const contents = [randomBytes(mebibyte), randomBytes(mebibyte), randomBytes(mebibyte)]
    const names = ['vda', 'vdb', 'a name, with: "odd" characters/é']
    const disks = []
    for (const [i, name] of names.entries()) {
      const image = await fillImage(
        join(directory.path, `${i},x`),
        'qcow2',
        contents[i] ?? Buffer.alloc(0),
        directory.path,
      )
      disks.push({ name, image })
    }
    await using served = await exportDisks(disks, { directory: directory.path })
    for (const [i, name] of names.entries()) {
      await using disk = await served.open(name)
      const content = Buffer.alloc(mebibyte)
      await disk.read(0, content)
      assert.ok(contents[i]?.equals(content))
    }
    await assert.rejects(served.open('vdc'), { code: 'NBD_EXPORT_REFUSED' })
  })

  it('lets a disk be read over several connections', async () => {
    await using directory = await openDirectory()
    const content = randomBytes(4 * mebibyte)
    const image = await fillImage(join(directory.path, 'disk'), 'raw', content, directory.path)
    await using served = await exportDisks([{ name: 'vda', image }], { directory: directory.path })
    await using disk = await served.open('vda', { connections: 4 })
    const back = Buffer.alloc(content.length)
    await disk.read(0, back)
    assert.ok(content.equals(back))
  })

  it('leaves no process, no socket and no open client behind, also when disposed twice', async () => {
    await using directory = await openDirectory()
    const image = await fillImage(join(directory.path, 'disk'), 'raw', randomBytes(mebibyte), directory.path)
    const served = await exportDisks([{ name: 'vda', image }], { directory: directory.path })
    const disk = await served.open('vda')
    await served[Symbol.asyncDispose]()
    await served[Symbol.asyncDispose]()
    assert.equal(await isRunning(served.pid), false)
    assert.deepEqual(await readdir(directory.path), ['disk'])
    await assert.rejects(disk.read(0, Buffer.alloc(1)), failsAt('DISK_READ_FAILED', 0))
    await assert.rejects(served.open('vda'), { code: 'DISK_EXPORT_FAILED' })
  })

  it("says QEMU's reason when an image cannot be opened", async () => {
    await using directory = await openDirectory()
    const open = (image: DiskImage) => exportDisks([{ name: 'vda', image }], { directory: directory.path })
    const nowhere: DiskImage = { format: 'raw', storage: { file: join(directory.path, 'none') } }
    await assert.rejects(open(nowhere), { code: 'DISK_EXPORT_FAILED', message: /vda.*No such file/ })
    const file = join(directory.path, 'text')
    await writeFile(file, 'x'.repeat(4096))
    await assert.rejects(open({ format: 'vhdx', storage: { file } }), { code: 'DISK_EXPORT_FAILED' })
    assert.deepEqual(await readdir(directory.path), ['text'])
  })

  it('never looks for a format in a raw disk', async () => {
    await using directory = await openDirectory()
    const file = join(directory.path, 'disk')
    await createImage(file, 'qcow2', 64 * mebibyte)
    const content = await readFile(file)
    const disk = await openDisk({ format: 'raw', storage: { file } }, directory.path, false)
    await using _ = disk
    const back = Buffer.alloc(512)
    await disk.read(0, back)
    assert.ok(back.equals(content.subarray(0, 512)))
  })

  it('refuses an overlay that does not state the format of its base', async () => {
    await using directory = await openDirectory()
    const [base, overlay] = [join(directory.path, 'base'), join(directory.path, 'overlay')]
    await createImage(base, 'raw', mebibyte)
    await createOverlay(overlay, base, 'raw')
    const header = await readFile(overlay)
    header.writeUInt32BE(0x12345678, header.indexOf(Buffer.from('e2792aca', 'hex')))
    await writeFile(overlay, header)
    const disks = [{ name: 'vda', image: { format: 'qcow2', storage: { file: overlay } } }] as const
    await assert.rejects(exportDisks(disks, { directory: directory.path }), { code: 'DISK_IMAGE_INVALID' })
  })

  it('fails reads in flight when the server is killed', { timeout: 10_000 }, async () => {
    await using directory = await openDirectory()
    const image = await fillImage(join(directory.path, 'disk'), 'raw', randomBytes(mebibyte), directory.path)
    await using served = await exportDisks([{ name: 'vda', image }], { directory: directory.path })
    await using disk = await served.open('vda')
    process.kill(served.pid, 'SIGSTOP')
    const read = disk.read(0, Buffer.alloc(1000))
    process.kill(served.pid, 'SIGKILL')
    await assert.rejects(read, failsAt('DISK_READ_FAILED', 0))
    await until(async () => !(await isRunning(served.pid)))
    await assert.rejects(served.open('vda'))
  })

  it('gives up on a server that hangs', { timeout: 10_000 }, async () => {
    await using directory = await openDirectory()
    const image = await fillImage(join(directory.path, 'disk'), 'raw', randomBytes(mebibyte), directory.path)
    await using served = await exportDisks([{ name: 'vda', image }], { directory: directory.path })
    await using disk = await served.open('vda', { deadlineMs: 200 })
    process.kill(served.pid, 'SIGSTOP')
    await assert.rejects(disk.read(0, Buffer.alloc(1000)), { code: 'DEADLINE_EXCEEDED' })
    process.kill(served.pid, 'SIGCONT')
  })

  it('frees the space of ranges made zero', async () => {
    await using directory = await openDirectory()
    const file = join(directory.path, 'disk')
    const image = await fillImage(file, 'raw', randomBytes(8 * mebibyte), directory.path)
    {
      await using disk = await openDisk(image, directory.path, true)
      await disk.writeZeroes(mebibyte, 6 * mebibyte)
      await disk.flush()
    }
    assert.ok((await imageInfo(file, 'raw')).allocatedBytes <= 3 * mebibyte)
  })

  it('serves a raw file whose size is no whole number of sectors without its last part', async () => {
    await using directory = await openDirectory()
    const file = join(directory.path, 'disk')
    await writeFile(file, randomBytes(mebibyte + 100))
    await using disk = await openDisk({ format: 'raw', storage: { file } }, directory.path, false)
    await disk.read(0, Buffer.alloc(disk.sizeBytes))
    assert.equal(disk.sizeBytes % 512, 0)
  })
})

describe('images and their locks', { skip }, () => {
  /** A base with content, an overlay on it, and an export of the overlay that stands for the running VM. */
  async function openScene(stack: AsyncDisposableStack, baseFormat: ImageFormat) {
    const directory = stack.use(await openDirectory()).path
    const [basePath, overlayPath] = [join(directory, 'base'), join(directory, 'overlay')]
    const content = randomBytes(4 * mebibyte)
    const base = await fillImage(basePath, baseFormat, content, directory)
    await createOverlay(overlayPath, basePath, baseFormat)
    const overlay: DiskImage = { format: 'qcow2', storage: { file: overlayPath } }
    return { directory, basePath, overlayPath, content, base, overlay }
  }

  for (const format of ['raw', 'qcow2'] as const) {
    it(`reads a ${format} base without disturbing a VM that runs on an overlay of it`, async () => {
      await using stack = new AsyncDisposableStack()
      const { directory, base, overlay, content } = await openScene(stack, format)
      await using reader = await openDisk(base, directory, false)
      await using vm = await openDisk(overlay, directory, true)
      await vm.write(0, Buffer.alloc(mebibyte, 7))
      await vm.flush()
      const back = Buffer.alloc(content.length)
      await reader.read(0, back)
      assert.ok(back.equals(content))
    })
  }

  it('keeps the base from being merged into while it is read, and lets go when disposed', async () => {
    await using stack = new AsyncDisposableStack()
    const { directory, base, basePath, overlay, overlayPath } = await openScene(stack, 'qcow2')
    {
      await using vm = await openDisk(overlay, directory, true)
      await vm.write(0, Buffer.alloc(mebibyte, 7))
      await vm.flush()
    }
    {
      await using _ = await openDisk(base, directory, false)
      await assert.rejects(commitImage(overlayPath, 'qcow2'), { code: 'COMMAND_FAILED', message: /lock/ })
    }
    await commitImage(overlayPath, 'qcow2')
    await commitImage(overlayPath, 'qcow2')
    await rm(overlayPath)
    await using merged = await openDisk(base, directory, false)
    const back = Buffer.alloc(mebibyte)
    await merged.read(0, back)
    assert.ok(back.equals(Buffer.alloc(mebibyte, 7)))
    assert.equal((await imageInfo(basePath, 'qcow2')).format, 'qcow2')
  })

  it('refuses a qcow2 image that a VM writes to', async () => {
    await using stack = new AsyncDisposableStack()
    const { directory, overlay } = await openScene(stack, 'raw')
    await using _vm = await openDisk(overlay, directory, true)
    const reading = openDisk(overlay, directory, false)
    await assert.rejects(reading, { code: 'DISK_EXPORT_FAILED', message: /lock/ })
  })

  it('looks at images and puts overlays on them while a VM writes to them', async () => {
    await using stack = new AsyncDisposableStack()
    const { directory, overlay, overlayPath, basePath } = await openScene(stack, 'raw')
    await using _vm = await openDisk(overlay, directory, true)
    const second = join(directory, 'second')
    await createOverlay(second, overlayPath, 'qcow2')
    assert.equal((await imageInfo(second)).virtualSizeBytes, 4 * mebibyte)
    assert.deepEqual(await backingChain(second, 'qcow2'), [
      { path: overlayPath, format: 'qcow2' },
      { path: basePath, format: 'raw' },
    ])
  })

  it('does not commit what has no backing file', async () => {
    await using stack = new AsyncDisposableStack()
    const { basePath } = await openScene(stack, 'qcow2')
    await assert.rejects(commitImage(basePath, 'qcow2'), { code: 'DISK_IMAGE_INVALID' })
  })

  it('lets no reader survive a kill -9, so that the base can be merged into at once', { timeout: 20_000 }, async () => {
    await using stack = new AsyncDisposableStack()
    const { directory, basePath, overlayPath } = await openScene(stack, 'qcow2')
    const library = new URL('../../src/libvirt/disk-export.ts', import.meta.url).href
    const script = `
      import { exportDisks } from ${JSON.stringify(library)}
      const image = { format: 'qcow2', storage: { file: ${JSON.stringify(basePath)} } }
      const served = await exportDisks([{ name: 'vda', image }], { directory: ${JSON.stringify(directory)} })
      await served.open('vda')
      console.log(served.pid)
      setInterval(() => 0, 1000)`
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const pid = await new Promise<number>((resolve) => child.stdout.once('data', (bytes) => resolve(Number(bytes))))
    assert.equal(await isRunning(pid), true)
    await assert.rejects(commitImage(overlayPath, 'qcow2'), { code: 'COMMAND_FAILED', message: /lock/ })
    child.kill('SIGKILL')
    await until(async () => !(await isRunning(pid)))
    await commitImage(overlayPath, 'qcow2')
  })

  it('makes images of exactly the size asked for, in every format', async () => {
    await using directory = await openDirectory()
    const size = 5 * mebibyte + 512
    for (const format of ['raw', 'qcow2', 'vpc', 'vhdx', 'qed', 'vmdk', 'vdi'] as const) {
      const path = join(directory.path, format)
      await createImage(path, format, size)
      assert.deepEqual([format, (await imageInfo(path, format)).virtualSizeBytes], [format, size])
    }
  })
})
