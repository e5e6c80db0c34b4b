import assert from 'node:assert/strict'
import { mkdtempDisposable, readFile, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { domainXmlEditor } from './configuration-editor.ts'
import { imageInfo } from './disk-image.ts'
import { liveDomain } from './domain-fixtures.ts'
import { readDomain } from './domain-xml.ts'
import { createRepositoryOverlay, nbdBacking, reconnectDelaySeconds } from './repository-overlay.ts'
import { attribute, child, children, parseXml } from './xml-dom.ts'

const served = { socketPath: '/run/x y/disks.sock', exportName: 'sda' }

describe('an overlay above a served disk', () => {
  it('is made while nobody serves, says what lies beneath, and is private', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const path = join(directory.path, 'sda.qcow2')
    await createRepositoryOverlay(path, { ...served, sizeBytes: 3 * 512 })
    const info = await imageInfo(path, 'qcow2')
    assert.equal(info.virtualSizeBytes, 3 * 512)
    assert.equal(info.backingFile, 'nbd+unix:///sda?socket=/run/x%20y/disks.sock')
    assert.equal(info.backingFormat, 'raw')
    assert.equal((await stat(path)).mode & 0o777, 0o600)
  })

  it('never takes a file that is there', async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), 'umbra-test-'))
    const path = join(directory.path, 'sda.qcow2')
    await writeFile(path, 'mine')
    await assert.rejects(createRepositoryOverlay(path, { ...served, sizeBytes: 512 }), { code: 'EEXIST' })
    assert.equal(await readFile(path, 'utf8'), 'mine')
  })
})

describe('a configuration on such an overlay', () => {
  const { disks } = readDomain(liveDomain)
  const target = disks.find(({ device }) => device === 'disk')?.target ?? ''
  const edited = domainXmlEditor.edit(liveDomain, {
    disks: { [target]: { file: '/images/new.qcow2', format: 'qcow2', backing: nbdBacking(served) } },
  })
  const element = children(child(parseXml(edited, 'domain').root, 'devices'), 'disk').find(
    (disk) => attribute(child(disk, 'target'), 'dev') === target,
  )

  it('names the overlay, and the export beneath it with nothing beneath that', () => {
    assert.equal(attribute(child(element, 'driver'), 'type'), 'qcow2')
    assert.equal(attribute(child(element, 'source'), 'file'), '/images/new.qcow2')
    const [beneath, ...more] = children(element, 'backingStore')
    assert.equal(more.length, 0)
    assert.equal(attribute(beneath, 'type'), 'network')
    assert.equal(attribute(child(beneath, 'format'), 'type'), 'raw')
    assert.equal(child(beneath, 'backingStore')?.childNodes.length, 0)
    const host = child(child(beneath, 'source'), 'host')
    assert.deepEqual([attribute(host, 'transport'), attribute(host, 'socket')], ['unix', served.socketPath])
  })

  it('lets requests wait for a server that is away', () => {
    const source = child(child(element, 'backingStore'), 'source')
    assert.equal(attribute(child(source, 'reconnect'), 'delay'), String(reconnectDelaySeconds))
  })

  it('is read back as a chain that ends with the export', () => {
    const disk = readDomain(edited).disks.find((one) => one.target === target)
    assert.deepEqual(
      disk?.chain.map(({ image }) => image?.storage),
      [{ nbd: served }],
    )
  })

  it('forgets the export when the disk is put on a file of its own', () => {
    const alone = domainXmlEditor.edit(edited, { disks: { [target]: { file: '/images/new.qcow2', format: 'qcow2' } } })
    assert.ok(!alone.includes(served.socketPath))
  })
})

describe('the place of a socket', () => {
  it('is refused when it is longer than an address can be', () => {
    assert.throws(() => nbdBacking({ socketPath: `/${'x'.repeat(107)}`, exportName: 'sda' }))
  })
})
