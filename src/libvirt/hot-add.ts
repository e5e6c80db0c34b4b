/**
 * Hot-adds the copy of a disk to a running VM, and removes it again (libvirt docs, "Domain XML format", Hard drives;
 * API reference: virDomainAttachDeviceFlags, virDomainDetachDeviceFlags). Only the live VM is changed, never its
 * definition. Always on a virtio-scsi controller, at an address that we choose: left to itself, libvirt derives the
 * controller from the name of the target, and would want one that the VM does not have.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { systemClock } from '../base/clock.ts'
import { describeError, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type AttachedCopy, copySerial, type DiskImage } from '../vm/hypervisor.ts'
import type { DomainCalls } from './domain-calls.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure } from './libvirt-errors.ts'
import { power } from './power.ts'
import { xmlFlags } from './protocol.ts'
import { attribute, child, children, escapeXml, parseXml } from './xml-dom.ts'

/** How long a device that does not go is waited for. libvirt itself waits 5 s in each call. */
const usualLimitMs = 30_000
/** On a virtio-scsi controller a target has more; as many are certain to be found by every guest. */
const mostUnits = 256

type ScsiPlace = { readonly controller: number; readonly unit: number }

/** Indexes of the VM's virtio-scsi controllers. */
export function virtioScsiControllers(xml: string): number[] {
  const { root } = parseXml(xml, 'domain')
  return children(child(root, 'devices'), 'controller')
    .filter((each) => attribute(each, 'type') === 'scsi' && /^virtio-/.test(attribute(each, 'model') ?? ''))
    .map((each) => Number(attribute(each, 'index') ?? 0))
}

/** Serials of copies that are attached. */
export const attachedCopies = (disks: readonly { readonly serial?: string }[]): string[] =>
  disks.flatMap(({ serial }) => (serial !== undefined && copySerial.test(serial) ? [serial] : []))

/** Where one disk more fits. Everything with a drive address counts, passed-through devices too. */
export function freeScsiPlace(xml: string): ScsiPlace | undefined {
  const devices = child(parseXml(xml, 'domain').root, 'devices')
  const taken = new Set(
    ['disk', 'hostdev'].flatMap((kind) =>
      children(devices, kind).map((device) => {
        const address = child(device, 'address')
        const number = (name: string) => Number(attribute(address, name) ?? 0)
        if (attribute(address, 'type') !== 'drive' || number('bus') !== 0 || number('target') !== 0) return ''
        return `${number('controller')}:${number('unit')}`
      }),
    ),
  )
  for (const controller of virtioScsiControllers(xml))
    for (let unit = 0; unit < mostUnits; unit += 1) if (!taken.has(`${controller}:${unit}`)) return { controller, unit }
  return undefined
}

/** From the end of the alphabet: nobody who adds a disk meanwhile wants these. */
export function freeTarget(targets: readonly string[]): string | undefined {
  const letters = [...'zyxwvutsrqponmlkjihgfedcba']
  return letters.map((letter) => `sd${letter}`).find((name) => !targets.includes(name))
}

function diskXml(target: string, serial: string, image: DiskImage, { controller, unit }: ScsiPlace): string {
  const { storage, format } = image
  invariant('file' in storage || 'blockDevice' in storage, 'a copy is a file or a block device of the host')
  const [type, source] = 'file' in storage ? ['file', `file='${escapeXml(storage.file)}'`] : blockSource(storage)
  return [
    `<disk type='${type}' device='disk'>`,
    `<driver name='qemu' type='${format}'/><source ${source}/>`,
    `<target dev='${target}' bus='scsi'/><serial>${escapeXml(serial)}</serial>`,
    `<address type='drive' controller='${controller}' bus='0' target='0' unit='${unit}'/></disk>`,
  ].join('')
}

const blockSource = ({ blockDevice }: { blockDevice: string }) => ['block', `dev='${escapeXml(blockDevice)}'`]

export async function attachCopy(domains: DomainCalls, uuid: string, { serial, image }: AttachedCopy): Promise<void> {
  invariant(copySerial.test(serial), `no serial for a copy: ${serial}`)
  const state = await power(domains, uuid)
  const vm = domains.nameOf(uuid)
  if (state === 'gone') throw failure('VM_NOT_FOUND', { vm, known: 'others' })
  const wrongState = (reason: string) => failure('VM_STATE', { vm, state, reason })
  if (state !== 'running') throw wrongState('only a running VM can revert copies of its disks')
  const xml = await domains.xml(uuid, 0)
  const { disks } = readDomain(xml, vm)
  if (virtioScsiControllers(xml).length === 0) throw wrongState('it has no virtio-scsi controller')
  if (disks.some((disk) => disk.serial === serial))
    throw failure('HYPERVISOR_REFUSED', {
      call: 'attach',
      reason: `a disk with the serial ${serial} is attached already`,
    })
  const [place, target] = [freeScsiPlace(xml), freeTarget(disks.map((disk) => disk.target))]
  if (place === undefined || target === undefined) throw wrongState('no place is free on its virtio-scsi controllers')
  await domains.attachDevice(uuid, diskXml(target, serial, image, place))
}

/** What happened to a detached copy is only believed when the live VM does not show it any more. */
export async function detachCopy(
  domains: DomainCalls,
  uuid: string,
  serial: string,
  limitMs = usualLimitMs,
): Promise<void> {
  const giveUpAt = systemClock.monotonicMs() + limitMs
  for (let trouble: unknown, pauseMs = 50; ; pauseMs = Math.min(2 * pauseMs, 1000)) {
    const disk = await attachedAs(domains, uuid, serial)
    if (disk === undefined) return
    if (systemClock.monotonicMs() > giveUpAt) {
      const why = trouble === undefined ? 'the VM has not let go of it' : describeError(trouble)
      const reason = `the copy ${serial} is still attached after ${Math.round(limitMs / 1000)} s: ${why}`
      throw failure('HYPERVISOR_REFUSED', { call: 'detach', vm: domains.nameOf(uuid), reason }, trouble)
    }
    try {
      await domains.detachDevice(uuid, disk)
    } catch (error) {
      // It may have gone while it was asked to, or the VM with it, or it is about to go: the next look tells.
      if (isFailure(error, 'HYPERVISOR_UNREACHABLE')) throw error
      trouble = error
      await sleep(pauseMs)
    }
  }
}

/** The element that names the attached copy to libvirt; undefined when the VM does not have it. */
async function attachedAs(domains: DomainCalls, uuid: string, serial: string): Promise<string | undefined> {
  const state = await power(domains, uuid)
  if (state === 'gone' || state === 'off') return undefined
  const vm = domains.nameOf(uuid)
  const find = (xml: string) => readDomain(xml, vm).disks.find((disk) => disk.serial === serial)
  if (state === 'saved') {
    if (find(await domains.managedSaveXml(uuid, xmlFlags.secure)) === undefined) return undefined
    throw failure('VM_STATE', {
      vm,
      state,
      reason: `its memory goes on with the copy ${serial}, which is still attached`,
    })
  }
  try {
    const xml = await domains.xml(uuid, 0)
    const disk = find(xml)
    if (disk !== undefined) {
      invariant(
        disk.image !== undefined && disk.address !== undefined && 'drive' in disk.address,
        `${serial} is a copy`,
      )
      return diskXml(disk.target, serial, disk.image, disk.address.drive)
    }
    // The XML forgets a disk a little before QEMU has closed its image; a job of the VM waits until that has ended.
    const [other] = readDomain(xml, vm).disks.filter(({ passThrough, location }) => !passThrough && location !== '')
    if (other !== undefined) await domains.blockJob(uuid, other.target)
    return undefined
  } catch (error) {
    if (['off', 'gone'].includes(await power(domains, uuid))) return undefined
    throw error
  }
}
