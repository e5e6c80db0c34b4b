/**
 * Exporting a recovery point that was made by hand: real images by QEMU, everything or nothing of it in the directory.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { promisify } from 'node:util'
import { openMemoryRepository } from '../../test/sim/memory-repository.ts'
import { type StoredVm, storeVms } from '../../test/sim/stored-vm.ts'
import { systemClock } from '../base/clock.ts'
import { Failure } from '../base/failure.ts'
import { ownProcessMark, type ProcessMark, processMarkText } from '../base/process-mark.ts'
import { createWritableImage } from '../compose.ts'
import { domainXmlEditor } from '../libvirt/configuration-editor.ts'
import type { ImageFormat } from '../libvirt/disk-image.ts'
import { checkImage, compareImage } from '../libvirt/image-check.ts'
import type { RecoveryPoint } from '../repository/repository.ts'
import { type ExportEnvironment, type ExportRequest, exportFormats, exportPoint } from './export-point.ts'

const run = promisify(execFile)
const mebibyte = 1024 * 1024
const chunkSizeBytes = 65_536

/** 24 MiB with 3 MiB of data. */
function sparseContent(): Buffer {
  const content = Buffer.alloc(24 * mebibyte)
  randomBytes(2 * mebibyte).copy(content, 0)
  randomBytes(mebibyte).copy(content, 17 * mebibyte)
  return content
}

const web01: StoredVm = {
  name: 'web01',
  uuid: '11111111-2222-4333-8444-555555555555',
  disks: { vda: sparseContent(), vdb: randomBytes(mebibyte + 512) },
  excluded: [{ target: 'vdc', reason: 'pass-through' }],
}
const db01: StoredVm = {
  name: 'db01',
  uuid: '66666666-2222-4333-8444-555555555555',
  disks: { sda: randomBytes(2 * mebibyte) },
  configuration: `<domain type='kvm'><name>db01</name><uuid>66666666-2222-4333-8444-555555555555</uuid>
    <os><type>hvm</type><nvram>/var/lib/libvirt/qemu/nvram/db01_VARS.fd</nvram></os>
    <devices><disk type='file' device='disk'><source file='/srv/db01.raw'/><target dev='sda' bus='scsi'/></disk>
    <graphics type='vnc' passwd='hush'/></devices></domain>`,
  documents: { nvram: 'variables', 'tpm/tpm2-00.permall': 'sealed' },
}

interface Scene extends AsyncDisposable {
  readonly point: RecoveryPoint
  readonly directory: string
  readonly environment: ExportEnvironment
  readonly backend: Awaited<ReturnType<typeof openMemoryRepository>>['backend']
  request(more?: Partial<ExportRequest>): ExportRequest
  names(): Promise<string[]>
}

async function openScene(vms: readonly StoredVm[], more: Partial<ExportEnvironment> = {}): Promise<Scene> {
  const stored = await openMemoryRepository(chunkSizeBytes)
  const point = await storeVms(stored.repository, vms)
  const base = await mkdtemp(join(tmpdir(), 'umbra-export-'))
  const directory = join(base, 'to')
  await mkdir(directory)
  return {
    point,
    directory,
    backend: stored.backend,
    environment: {
      chunkSizeBytes,
      createImage: (path, format, size) => createWritableImage(path, format as ImageFormat, size, base),
      checkImage,
      compareImage,
      rewrite: (configuration, places) => domainXmlEditor.edit(configuration, places),
      socketDirectory: base,
      clock: systemClock,
      signal: new AbortController().signal,
      ...more,
    },
    request: (wanted = {}) => ({ names: [], format: 'qcow2', directory, check: true, ...wanted }),
    names: async () => (await readdir(directory)).sort(),
    async [Symbol.asyncDispose]() {
      await stored[Symbol.asyncDispose]()
      await rm(base, { recursive: true })
    },
  }
}

async function assertHolds(path: string, format: string, content: Uint8Array): Promise<void> {
  const file = `${path}.expected`
  await writeFile(file, content)
  await run('qemu-img', ['compare', '-f', format, '-F', 'raw', path, file])
  await rm(file)
}

describe('an export', () => {
  for (const format of exportFormats) {
    it(`as ${format} holds every byte, leaves holes, and names its images in the configuration`, async () => {
      await using scene = await openScene([web01])
      const result = await exportPoint(scene.point, scene.request({ format }), scene.environment)
      assert.deepEqual(
        await scene.names(),
        ['web01-vda', 'web01-vdb'].map((name) => `${name}.${format}`).concat('web01.xml'),
      )
      const qemuFormat = format === 'vhd' ? 'vpc' : format
      for (const target of ['vda', 'vdb'])
        await assertHolds(
          join(scene.directory, `web01-${target}.${format}`),
          qemuFormat,
          web01.disks[target] ?? Buffer.alloc(0),
        )
      const { blocks, mode } = await stat(join(scene.directory, `web01-vda.${format}`))
      assert.ok(blocks * 512 < 20 * mebibyte, `${blocks} blocks of 512 bytes for 3 MiB of data`)
      assert.equal(mode & 0o777, 0o600)
      const xml = await readFile(join(scene.directory, 'web01.xml'), 'utf8')
      assert.ok(
        xml.includes(`file="${scene.directory}/web01-vda.${format}"`) && xml.includes(`type="${qemuFormat}"`),
        xml,
      )
      assert.ok(!xml.includes('/srv/vms/'))
      assert.equal(result.checked, true)
      assert.deepEqual(result.vms[0]?.notes, ['vdc was not backed up and stays as it was'])
    })
  }

  it('takes the VMs that are named, with firmware variables, and says what it leaves out', async () => {
    await using scene = await openScene([web01, db01])
    const { vms } = await exportPoint(scene.point, scene.request({ names: ['db01'], format: 'raw' }), scene.environment)
    assert.deepEqual(await scene.names(), ['db01-sda.raw', 'db01.xml', 'db01_VARS.fd'])
    assert.equal(await readFile(join(scene.directory, 'db01_VARS.fd'), 'utf8'), 'variables')
    const xml = await readFile(join(scene.directory, 'db01.xml'), 'utf8')
    assert.ok(xml.includes(`<nvram>${scene.directory}/db01_VARS.fd</nvram>`))
    assert.match(vms[0]?.notes.join('\n') ?? '', /state of its TPM is left out.*\n.*passwords/s)
    await assert.rejects(exportPoint(scene.point, scene.request({ names: ['db02'] }), scene.environment), {
      code: 'VM_NOT_FOUND',
    })
  })

  it('replaces nothing', async () => {
    await using scene = await openScene([web01])
    await writeFile(join(scene.directory, 'web01.xml'), 'mine')
    await assert.rejects(exportPoint(scene.point, scene.request(), scene.environment), { code: 'EXPORT_FILE_EXISTS' })
    assert.deepEqual(await scene.names(), ['web01.xml'])
  })

  it('replaces nothing that came while it was at work, and takes back what it had placed', async () => {
    await using scene = await openScene([web01], {
      checkImage: async () => writeFile(join(scene.directory, 'web01.xml'), 'mine'),
    })
    await assert.rejects(exportPoint(scene.point, scene.request(), scene.environment), { code: 'EXPORT_FILE_EXISTS' })
    assert.deepEqual(await scene.names(), ['web01.xml'])
    assert.equal(await readFile(join(scene.directory, 'web01.xml'), 'utf8'), 'mine')
  })

  it('leaves nothing when it is cancelled, in any of its steps', async () => {
    for (const at of ['write', 'check', 'compare'] as const) {
      const cancel = new AbortController()
      const stop = new DOMException('cancelled', 'AbortError')
      await using scene = await openScene([web01], {
        signal: cancel.signal,
        onStep: () => at === 'write' && cancel.abort(stop),
        checkImage: async () => (at === 'check' ? cancel.abort(stop) : undefined),
        compareImage: async (...image) => {
          const comparing = compareImage(...image)
          if (at === 'compare') cancel.abort(stop)
          await comparing
        },
      })
      await assert.rejects(exportPoint(scene.point, scene.request(), scene.environment), stop)
      assert.deepEqual(await scene.names(), [])
    }
  })

  it('is refused when an image is not what the recovery point holds', async () => {
    await using scene = await openScene([web01], {
      checkImage: async (path) => void (await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 5M 4k', path])),
    })
    await assert.rejects(exportPoint(scene.point, scene.request(), scene.environment), (error) => {
      return error instanceof Failure && error.code === 'EXPORT_CHECK_FAILED' && /not that of/.test(error.message)
    })
    assert.deepEqual(await scene.names(), [])
    await exportPoint(scene.point, scene.request({ check: false }), scene.environment)
    assert.equal((await scene.names()).length, 3)
  })

  it('is refused when there is no room, before anything is written', async () => {
    await using scene = await openScene([web01])
    const huge = scene.point.streams.map((stream) => ({ ...stream, sizeBytes: 2 ** 52 }))
    const created: string[] = []
    const environment: ExportEnvironment = {
      ...scene.environment,
      createImage: async (path) => {
        created.push(path)
        throw new Error('not reached')
      },
    }
    await assert.rejects(exportPoint({ ...scene.point, streams: huge }, scene.request(), environment), {
      code: 'VSS_INSUFFICIENT_STORAGE',
    })
    assert.deepEqual([created, await scene.names()], [[], []])
  })

  it('keeps within the directory, whatever a VM is called', async () => {
    for (const name of ['../../etc/passwd', '.', '..', '-rf', 'a\nb', 'ö'.repeat(200)]) {
      await using scene = await openScene([
        {
          ...db01,
          name,
          configuration: '<domain><name>x</name><devices><disk><target dev="sda"/></disk></devices></domain>',
        },
      ])
      await exportPoint(scene.point, scene.request({ format: 'raw', check: false }), scene.environment)
      assert.equal((await scene.names()).length, 3)
      assert.ok((await scene.names()).every((file) => !file.startsWith('.') && !file.includes('/')))
    }
  })

  it('removes what a killed one left in its directory, and nothing else', async () => {
    const own = await ownProcessMark()
    const staged = (mark: ProcessMark) => `db01-sda.raw.umbra-new-${processMarkText(mark)}-0a1b`
    const dead = [staged({ ...own, startTicks: 1 }), staged({ ...own, boot: '00000000' })]
    const kept = [
      staged(own),
      staged({ ...own, host: '00000000' }),
      'db01-sda.raw.umbra-new-0badcafe', // a restore's, which has a journal
      `${dead[0]}.txt`,
      `${dead[0]}0`,
      'mine.raw',
    ]
    const told: unknown[] = []
    await using scene = await openScene([db01], { onAbandoned: (paths) => told.push(paths) })
    for (const name of [...dead, ...kept]) await writeFile(join(scene.directory, name), 'x')
    await mkdir(join(scene.directory, `x${dead[0]}`))
    await exportPoint(scene.point, scene.request({ format: 'raw', check: false }), scene.environment)
    const made = ['db01-sda.raw', 'db01.xml', 'db01_VARS.fd']
    assert.deepEqual(await scene.names(), [...kept, ...made, `x${dead[0]}`].sort())
    assert.deepEqual(told, [dead.map((name) => join(scene.directory, name)).sort()])
  })
})
