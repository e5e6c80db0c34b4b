/**
 * What the storage daemon and qemu-img are told, and what is believed of their answers; without running them.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { daemonArguments, exportDisks } from './disk-export.ts'
import { createOverlay, imageInfo, readImageInfo } from './disk-image.ts'

describe('the arguments of the storage daemon', () => {
  const blockdev = (disk: Parameters<typeof daemonArguments>[0][0], writable = false) => {
    const args = daemonArguments([disk], '/run/s', writable)
    return JSON.parse(args[args.indexOf('--blockdev') + 1] ?? '')
  }

  it('state the format and open for reading only', () => {
    assert.deepEqual(blockdev({ name: 'vda', image: { format: 'raw', storage: { file: '/a,b/c"d' } } }), {
      driver: 'raw',
      'node-name': 'disk0',
      'read-only': true,
      file: { driver: 'file', filename: '/a,b/c"d', 'read-only': true },
    })
  })

  it('open for writing only when asked to, and then pass on freed ranges', () => {
    assert.deepEqual(
      blockdev({ name: 'vda', image: { format: 'qcow2', storage: { blockDevice: '/dev/vg/a' } } }, true),
      {
        driver: 'qcow2',
        'node-name': 'disk0',
        'read-only': false,
        discard: 'unmap',
        file: { driver: 'host_device', filename: '/dev/vg/a', 'read-only': false, discard: 'unmap' },
      },
    )
  })

  it('reach disks on other servers', () => {
    const nbd = (storage: { socketPath: string } | { host: string; port: number }) =>
      blockdev({ name: 'vda', image: { format: 'raw', storage: { nbd: { ...storage, exportName: 'x' } } } }).file.server
    assert.deepEqual(nbd({ socketPath: '/run/n' }), { type: 'unix', path: '/run/n' })
    assert.deepEqual(nbd({ host: 'h', port: 10809 }), { type: 'inet', host: 'h', port: '10809' })
    const monitors = [{ host: 'm', port: 3300 }]
    const storage = { rbd: { pool: 'p', image: 'i', monitors, user: 'u', keyFile: '/k' } }
    const args = daemonArguments([{ name: 'vda', image: { format: 'raw', storage } }], '/run/s', false)
    const key = { 'qom-type': 'secret', id: 'disk0-key', file: '/k', format: 'base64' }
    assert.deepEqual(JSON.parse(args[args.indexOf('--object') + 1] ?? ''), key)
    const node = JSON.parse(args[args.indexOf('--blockdev') + 1] ?? '')
    assert.deepEqual(node.file.server, [{ host: 'm', port: '3300' }])
    assert.equal(node.file['key-secret'], 'disk0-key')
  })

  it('serve every disk under its name', () => {
    const image = { format: 'raw', storage: { file: '/a' } } as const
    const args = daemonArguments(
      [
        { name: 'vda', image },
        { name: 'vdb', image },
      ],
      '/run/s',
      false,
    )
    const exports = args.filter((_, i) => args[i - 1] === '--export').map((json) => JSON.parse(json))
    assert.deepEqual(
      exports.map((each) => [each.name, each['node-name'], each.writable]),
      [
        ['vda', 'disk0', false],
        ['vdb', 'disk1', false],
      ],
    )
  })
})

describe('exportDisks', () => {
  it('refuses a directory in which no socket can be', async () => {
    await assert.rejects(exportDisks([], { directory: `/${'long'.repeat(30)}` }), { code: 'DISK_EXPORT_FAILED' })
  })
})

describe('image information', () => {
  it('is read from what qemu-img says', () => {
    const json = JSON.stringify({
      format: 'qcow2',
      'virtual-size': 1024,
      'actual-size': 512,
      'cluster-size': 65_536,
      'backing-filename': 'base.img',
      'full-backing-filename': '/d/base.img',
      'backing-filename-format': 'raw',
      'format-specific': {},
    })
    assert.deepEqual(readImageInfo('/d/a', json), {
      format: 'qcow2',
      virtualSizeBytes: 1024,
      allocatedBytes: 512,
      clusterSizeBytes: 65_536,
      backingFile: '/d/base.img',
      backingFormat: 'raw',
    })
  })

  it('is not believed when it makes no sense', () => {
    const invalid = [
      '',
      '{}',
      '[]',
      'null',
      '{"format":"raw","virtual-size":-1}',
      '{"format":"raw","virtual-size":1e300}',
    ]
    for (const json of invalid) assert.throws(() => readImageInfo('/d/a', json), { code: 'DISK_IMAGE_INVALID' })
  })

  it('is asked only for absolute paths, which QEMU cannot take for anything else', async () => {
    await assert.rejects(imageInfo('json:{"driver":"nbd"}', 'raw'), /bug: the path of an image is absolute/)
    await assert.rejects(createOverlay('/a', 'nbd:host:1', 'raw', { sizeBytes: 512 }), /is absolute/)
  })
})
