/**
 * A libvirtd of a test file's own that knows its QEMU already: asking QEMU what it can takes libvirt 8 s, and each test file
 * begins with nothing. libvirt writes down what it was told, with the times and versions of all that it depends on, and takes
 * it for outdated by itself.
 */
import { mkdir, readdir, readFile, rename, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type PrivateLibvirtd, privateLibvirtd } from '../../sample-guest/sample-guest.ts'

const known = join(import.meta.dirname, '../../.cache/libvirt-capabilities')

/** Disposal ends it and its VMs. */
export async function ownLibvirtd(directory: string): Promise<PrivateLibvirtd> {
  await mkdir(dirname(directory), { recursive: true })
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const own = join(directory, 'cache/qemu/capabilities')
  await copyNew(known, own)
  const libvirtd = await privateLibvirtd(directory)
  await copyNew(own, known)
  return libvirtd
}

/** Every file is there whole or not at all: others do the same at this moment. */
async function copyNew(from: string, to: string): Promise<void> {
  const contentOf = (path: string) => readFile(path).catch(() => undefined)
  await mkdir(to, { recursive: true })
  for (const name of (await readdir(from).catch(() => [])).filter((each) => each.endsWith('.xml'))) {
    const content = await contentOf(join(from, name))
    if (content === undefined || (await contentOf(join(to, name)))?.equals(content)) continue
    const coming = join(to, `${name}.${process.pid}`)
    await writeFile(coming, content, { mode: 0o600 })
    await rename(coming, join(to, name))
  }
}
