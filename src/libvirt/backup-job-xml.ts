/**
 * libvirt's backup documents in pull mode (libvirt docs, "Backup XML format"), written, and read as far as it takes to tell
 * one job from another.
 */
import type { BackupJobPlan } from '../vm/backup-job.ts'
import { attribute, child, children, escapeXml, parseXml, text } from './xml-dom.ts'

/** Under this name a copy tells what has changed (as the NBD context `qemu:dirty-bitmap:NAME`). */
export const changesBitmap = 'umbra-changes'

/** Every disk of the VM is named: libvirt would choose for those it does not find. */
export function backupXml({ socket, disks }: BackupJobPlan, others: readonly string[]): string {
  const elements = disks.map(({ target, scratch, since }) => {
    const name = escapeXml(target)
    const mode =
      since === undefined
        ? `backupmode='full'`
        : `backupmode='incremental' incremental='${escapeXml(since)}' exportbitmap='${changesBitmap}'`
    const file = `<driver type='qcow2'/><scratch file='${escapeXml(scratch)}'/>`
    return `<disk name='${name}' backup='yes' type='file' ${mode} exportname='${name}'>${file}</disk>`
  })
  const none = others.map((target) => `<disk name='${escapeXml(target)}' backup='no'/>`)
  const server = `<server transport='unix' socket='${escapeXml(socket)}'/>`
  return `<domainbackup mode='pull'>${server}<disks>${[...elements, ...none].join('')}</disks></domainbackup>`
}

/** The socket of the job that is described; undefined when it serves elsewhere or pushes. */
export function readBackupSocket(xml: string, vm: string): string | undefined {
  const { root } = parseXml(xml, 'domainbackup', vm)
  return attribute(child(root, 'server'), 'socket')
}

/** As whom the process of a running VM runs, by its discretionary label (`+64055:+109`); undefined where it has none. */
export function processOwner(
  domainXml: string,
  vm: string,
): { readonly uid: number; readonly gid: number } | undefined {
  const { root } = parseXml(domainXml, 'domain', vm)
  const label = children(root, 'seclabel').find((each) => attribute(each, 'model') === 'dac')
  const ids = /^\+(\d{1,10}):\+(\d{1,10})$/.exec(text(child(label, 'label')) ?? '')
  return ids === null ? undefined : { uid: Number(ids[1]), gid: Number(ids[2]) }
}
