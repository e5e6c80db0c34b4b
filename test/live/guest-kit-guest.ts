/**
 * A sample guest in one of its layouts, with guest/umbra-guest run inside it the way its protocol says
 * (docs/guest-protocol.md), and what a test wants to know of it.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createDisks, type GuestLayout, sampleGuestXml } from '../../sample-guest/sample-guest.ts'
import { agentAnswers, type LiveHost } from './libvirt-world.ts'

const script = await readFile(join(import.meta.dirname, '../../guest/umbra-guest'), 'utf8')

export interface Ended {
  readonly exitCode: number
  readonly stdout: string
  readonly stderr: string
}

export interface Verdict {
  readonly ok: boolean
  readonly crossConsistent: boolean
  readonly quiesced: boolean
  readonly lead: number
  readonly logs: readonly { readonly records: number; readonly last: number; readonly gaps: number }[]
}

/** What is in the guest of any set: mappings, volumes, subvolumes, programs that linger. */
const traces = `
dmsetup info -c --noheadings -o name | grep '^umbra-'
dmsetup table | grep snapshot
dmsetup info -c --noheadings -o name,suspended | grep Suspended
lvs --noheadings -o lv_name 2>/dev/null | grep umbra_
ls -d /run/umbra-guest/????????
for m in $(awk '$3 == "btrfs" { print $2 }' /proc/mounts); do btrfs subvolume list "$m" | grep umbra; done
grep ' /run/umbra-guest/' /proc/mounts
ls -d /run/umbra-guest.lock
true`

export class KitGuest {
  readonly #host: LiveHost
  readonly #uuid: string

  private constructor(host: LiveHost, uuid: string) {
    this.#host = host
    this.#uuid = uuid
  }

  static async boot(host: LiveHost, layout: GuestLayout): Promise<KitGuest> {
    const name = `kit-${layout}`
    const disks = await createDisks(host.images, join(host.directory, name), 'qcow2', { layout })
    const consolePath = join(host.directory, `${name}.console`)
    const xml = sampleGuestXml({ name, images: host.images, disks, consolePath, rootOnLvm: true, rate: 50 })
    const guest = new KitGuest(host, await host.hypervisor.define(xml))
    await guest.start()
    return guest
  }

  async start(): Promise<void> {
    await this.#host.hypervisor.start(this.#uuid)
    await agentAnswers(this.#host.hypervisor, this.#uuid)
  }

  turnOff = (): Promise<void> => this.#host.hypervisor.turnOff(this.#uuid)

  /** The script travels as the text of `sh -c`. */
  kit(...words: string[]): Promise<Ended> {
    return this.#host.hypervisor.guest(this.#uuid).exec('/bin/sh', ['-c', script, 'umbra-guest', ...words])
  }

  async kitDone(...words: string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await this.kit(...words)
    assert.equal(exitCode, 0, `${words.join(' ')}: ${stdout}${stderr}`)
    return stdout
  }

  async kitRefuses(exit: number, why: RegExp, ...words: string[]): Promise<void> {
    const { exitCode, stdout, stderr } = await this.kit(...words)
    assert.deepEqual([exitCode, stdout], [exit, ''], `${words.join(' ')}: ${stderr}`)
    assert.match(stderr.trimEnd().split('\n').at(-1) ?? '', why)
  }

  async inside(command: string): Promise<string> {
    const { exitCode, stdout, stderr } = await this.#host.hypervisor
      .guest(this.#uuid)
      .exec('/bin/sh', ['-c', `PATH=/sbin:/bin; ${command}`])
    assert.equal(exitCode, 0, `${command}: ${stdout}${stderr}`)
    return stdout.trim()
  }

  traces = (): Promise<string> => this.inside(traces)

  async verdict(logs = '/srv/a/log /srv/b/log'): Promise<Verdict> {
    return JSON.parse(await this.inside(`umbra-writer verify ${logs} || true`))
  }

  /** Freeze, commit and thaw in one go inside, as fast as the guest can; milliseconds from freeze to thaw. */
  async hold(set: string): Promise<number> {
    await this.inside(`cat >/run/kit <<'UMBRA-KIT-END'\n${script}\nUMBRA-KIT-END\ntrue`)
    const stamp = 'read -r now _ </proc/uptime; echo $now'
    const verbs = `sh /run/kit freeze ${set} 30 && sh /run/kit commit ${set} && sh /run/kit thaw ${set}`
    const [from = 0, to = 0] = (await this.inside(`${stamp}; ${verbs} || exit; ${stamp}`)).split('\n').map(Number)
    return Math.round((to - from) * 1000)
  }

  /** Both logs as the guest's own snapshot holds them. */
  async verdictOfSet(set: string, layout: GuestLayout): Promise<Verdict> {
    const keep = (index: number, from: string) => `cp ${from} /tmp/log${index}`
    const ofMapping = (index: number, device: string) =>
      `mount -o ro,noload ${device} /mnt && ${keep(index, '/mnt/log')} && umount /mnt`
    const copies = [1, 2].map((index) => {
      if (layout === 'lvm') return ofMapping(index, `/dev/mapper/umbra-${set}-${index}`)
      const thin = `thinvg/umbra_${set}_${index}`
      if (layout === 'thin')
        return `lvchange -q -ay -K ${thin} && ${ofMapping(index, `/dev/${thin}`)} && lvchange -q -an ${thin}`
      return keep(index, `/run/umbra-guest/btrfs-*${index === 1 ? 'ba' : 'bb'}/.umbra-${set}/vol/log`)
    })
    await this.inside(copies.join(' && '))
    return await this.verdict('/tmp/log1 /tmp/log2')
  }
}
