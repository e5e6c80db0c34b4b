/**
 * The backup integration service in a real guest, both ways: the scripts handed over through the agent's exec, and the
 * package's service for an agent that may run nothing. The times printed are what the host adds to the guest's hold.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { createDisks, sampleGuestXml } from '../../sample-guest/sample-guest.ts'
import type { GuestAgent } from '../../src/libvirt/guest-agent.ts'
import { isFailure } from '../../src/libvirt/libvirt-errors.ts'
import { UmbraGuest } from '../../src/libvirt/umbra-guest.ts'
import { agentAnswers, beginLiveHost, type LiveHost, skipLive } from './libvirt-world.ts'

const build = join(import.meta.dirname, '..', '..', 'guest', 'package', 'build')
const code = (expected: string) => (error: unknown) => isFailure(error, expected)

describe('umbra-guest in a real guest on LVM', { skip: skipLive, timeout: 600_000 }, () => {
  let host: LiveHost
  let agent: GuestAgent
  let uuid: string

  before(async () => {
    host = await beginLiveHost('umbra-guest')
    const disks = await createDisks(host.images, join(host.directory, 'vm'), 'raw', { lvm: true })
    const consolePath = join(host.directory, 'console')
    const xml = sampleGuestXml({ name: 'shop', images: host.images, disks, consolePath, rootOnLvm: true })
    uuid = await host.hypervisor.define(xml)
    await host.hypervisor.start(uuid)
    await agentAnswers(host.hypervisor, uuid)
    agent = host.hypervisor.guest(uuid)
  })

  after(async () => {
    if (uuid !== undefined) await host.hypervisor.turnOff(uuid)
    await host?.[Symbol.asyncDispose]()
  })

  it('takes a shadow copy of its volumes through exec', async (test) => {
    await takeShadowCopy('exec', '0badcafe', (line) => test.diagnostic(line))
  })

  it('takes one through the package, of an agent that may run nothing', async (test) => {
    await inside('[ -e /run/umbra-guest-service ] && exit 1; exit 0')
    await installPackage()
    await forbidExec()
    await assert.rejects(inside('true'), code('GUEST_REFUSED'))
    await takeShadowCopy('package', '1badcafe', (line) => test.diagnostic(line))
  })

  async function takeShadowCopy(via: 'exec' | 'package', set: string, print: (line: string) => void) {
    const guest = new UmbraGuest(agent)
    const timed = async <Value>(what: string, call: Promise<Value>): Promise<Value> => {
      const began = performance.now()
      const value = await call
      print(`${via} ${what} ${Math.round(performance.now() - began)} ms`)
      return value
    }
    const said = await timed('describe', guest.describe())
    assert.equal(said.via, via)
    assert.deepEqual(said.strayDevices, [])
    const places = said.volumes.map(({ mountPoint, kind, where, targets }) => [mountPoint, kind, where, ...targets])
    assert.deepEqual(places.sort(), [
      ['/', 'lvm', 'rootvg/root', 'sda'],
      ['/srv/a', 'lvm', 'datavg/data', 'sdb'],
      ['/srv/b', 'lvm', 'datavgb/data', 'sdc'],
    ])
    await timed('prepare', guest.prepare(set, 120_000))
    try {
      await timed('freeze', guest.freezeWriters(set, 30_000))
      await timed('commit', guest.commit(set))
      await timed('thaw', guest.thawWriters(set))
      const areas = await timed('status', guest.status(set))
      assert.equal(areas.length, 3)
      assert.ok(areas.every(({ usedBytes, totalBytes }) => usedBytes < totalBytes))
      await timed('agent alone', agent.freezeStatus())
      if (via === 'exec') await timed('empty program', inside('exit'))
    } finally {
      await timed('release', guest.release(set))
    }
    await assert.rejects(guest.commit(set), code('GUEST_SET_LOST'))
    await guest.release(set)
  }

  async function inside(script: string, input?: string) {
    const result = await agent.exec('/bin/sh', ['-c', script], input === undefined ? {} : { input })
    assert.equal(result.exitCode, 0, `${script}: ${result.stderr}`)
  }

  async function installPackage() {
    const built = execFileSync(build, [join(host.directory, 'package')], { encoding: 'utf8' }).trim()
    const files = execFileSync('dpkg-deb', ['--fsys-tarfile', built])
    await inside('base64 -d | tar x -C /', files.toString('base64'))
    await inside('setsid /usr/lib/umbra-guest/umbra-guest-service </dev/null >/dev/null 2>&1 &')
  }

  /** As an administrator does it: in the agent's configuration. */
  async function forbidExec() {
    const again = '(sleep 0.3; kill $(pidof qemu-ga)) </dev/null >/dev/null 2>&1 &'
    const names = 'guest-exec,guest-exec-status'
    await inside(
      `printf '[general]\\nblock-rpcs=${names}\\nblacklist=${names}\\n' >/etc/qemu/qemu-ga.conf; sync; ${again}`,
    )
    await setTimeout(1_000)
    await agentAnswers(host.hypervisor, uuid)
  }
})
