/**
 * guest/umbra-guest in real guests: classic LVM, thin LVM, btrfs, one boot each, with the writer at work. The order of
 * tests matters within a guest: each leaves nothing behind, and that is part of what it says.
 */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import type { GuestLayout } from '../../sample-guest/sample-guest.ts'
import { KitGuest } from './guest-kit-guest.ts'
import { beginLiveHost, type LiveHost, skipLive } from './libvirt-world.ts'
import { rarely, usually } from './thorough.ts'

const set = '0badcafe'
const expected: Record<string, readonly [kind: string, whereOfA: RegExp]> = {
  lvm: ['lvm', /^datavg\/data$/],
  thin: ['thin', /^thinvg\/a$/],
  btrfs: ['btrfs', /^[0-9a-f-]{36}:\/vol$/],
}

describe('umbra-guest', { skip: skipLive, timeout: 900_000 }, () => {
  let host: LiveHost
  before(async () => {
    host = await beginLiveHost('guest-kit')
  })
  after(() => host[Symbol.asyncDispose]())

  for (const layout of usually<'lvm' | 'thin' | 'btrfs'>(['lvm'], ['thin', 'btrfs'])) {
    describe(`in a guest with ${layout}`, () => {
      let guest: KitGuest
      before(async (t) => {
        const built = { lvm: host.images.lvmRoot, thin: host.images.thinData, btrfs: host.images.btrfsDataA }
        if (built[layout] === undefined) return (t as unknown as { skip(why: string): void }).skip('not built')
        guest = await KitGuest.boot(host, layout)
      })
      after(() => guest.turnOff())
      all(() => guest, layout)
      if (layout === 'lvm') onlyOfMappings(() => guest)
    })
  }
})

function all(guestOf: () => KitGuest, layout: GuestLayout): void {
  it('describes every volume, and changes nothing', async () => {
    const guest = guestOf()
    const lines = (await guest.kitDone('describe')).split('\n').map((line) => line.split('\t'))
    assert.deepEqual(lines[0], ['version', '1'])
    const volumes = lines.filter(([word]) => word === 'fs')
    assert.deepEqual(
      volumes.map(([, mountPoint, , kind, , , obstacle]) => [mountPoint, kind, obstacle]),
      ['/', '/srv/a', '/srv/b'].map((mountPoint) => [
        mountPoint,
        mountPoint === '/' ? 'lvm' : expected[layout]?.[0],
        '',
      ]),
    )
    assert.match(volumes[1]?.[4] ?? '', expected[layout]?.[1] ?? /never/)
    for (const volume of volumes) assert.ok(Number(volume[5]) > 16 * 1024 * 1024, String(volume))
    const groups = new Set(lines.filter(([word]) => word === 'pv').map(([, group]) => group))
    for (const volume of volumes)
      assert.ok(groups.has(volume[4]?.split(layout === 'btrfs' && volume[3] === 'btrfs' ? ':' : '/')[0]))
    assert.deepEqual(
      lines.filter(([word]) => word === 'writer').map(([, name]) => name),
      ['10-test-switches', 'umbra-writer'],
    )
    assert.equal(await guest.traces(), '')
  })

  it(
    'takes one instant of the data, the writer at rest, while the guest writes on; and takes all away again',
    rarely,
    async (t) => {
      const guest = guestOf()
      await guest.kitDone('prepare', set, '300')
      const heldMs = await guest.hold(set)
      t.diagnostic(`${layout}: ${heldMs} ms from freeze to thaw`)
      await setTimeout(500)
      const areas = (await guest.kitDone('status', set)).trim().split('\n')
      assert.equal(areas.length, 3)
      const taken = await guest.verdictOfSet(set, layout)
      assert.deepEqual([taken.ok, taken.quiesced, taken.lead], [true, true, 0])
      const now = await guest.verdict()
      assert.ok((now.logs[0]?.last ?? 0) > (taken.logs[0]?.last ?? 0), 'the writer goes on')
      assert.deepEqual([now.ok, now.crossConsistent], [true, true])
      await guest.kitDone('release', set)
      assert.equal(await guest.traces(), '')
      await guest.kitDone('release', set)
      await guest.kitRefuses(6, /no set/, 'status', set)
      assert.ok((await guest.verdict()).ok)
    },
  )

  it('leaves nothing of a set that a writer vetoes, by an error or by hanging', rarely, async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    await guest.inside('touch /run/writer-fail')
    await guest.kitRefuses(3, /^10-test-switches: told to fail$/, 'freeze', set, '9')
    await guest.inside('mv /run/writer-fail /run/writer-hang')
    await guest.kitRefuses(3, /^10-test-switches: it took longer than 1 s$/, 'freeze', set, '3')
    await guest.inside('rm /run/writer-hang; ! pgrep -f "sleep 3600"; ! [ -e /run/umbra-writer.quiesced ]')
    await guest.kitDone('release', set)
    assert.equal(await guest.traces(), '')
  })

  it('thaws by itself when nobody does, and the set is lost', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    await guest.kitDone('freeze', set, '2')
    const { logs } = await guest.verdict()
    await setTimeout(3500)
    assert.ok(((await guest.verdict()).logs[0]?.last ?? 0) > (logs[0]?.last ?? 0), 'the writer goes on')
    for (const verb of ['thaw', 'status', 'commit']) await guest.kitRefuses(5, /thawed by itself/, verb, set)
    await guest.kitDone('release', set)
    assert.equal(await guest.traces(), '')
  })

  it('releases a set by itself when its time is over', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '4')
    await guest.hold(set)
    for (let tries = 0; tries < 60 && (await guest.traces()) !== ''; tries += 1) await setTimeout(500)
    assert.equal(await guest.traces(), '')
    await guest.kitRefuses(6, /no set/, 'status', set)
  })

  it('leaves, when the guest is restarted, only what release --all removes', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    await guest.hold(set)
    await guest.turnOff()
    await guest.start()
    await guest.kitRefuses(6, /no set/, 'status', set)
    assert.doesNotMatch(await guest.traces(), /snapshot|umbra-0badcafe-/)
    assert.match(await guest.traces(), /umbra/)
    await guest.kitDone('release', '--all')
    assert.equal(await guest.traces(), '')
    assert.ok((await guest.verdict()).crossConsistent)
  })
}

function onlyOfMappings(guestOf: () => KitGuest): void {
  it('has one instant for all volumes, also when no writer holds still', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    await guest.kitDone('commit', set)
    const { ok, crossConsistent, quiesced, lead } = await guest.verdictOfSet(set, 'lvm')
    assert.deepEqual([ok, crossConsistent, quiesced], [true, true, false], `lead ${lead}`)
    await guest.kitDone('release', set)
    assert.equal(await guest.traces(), '')
  })

  it('notices an area that overflows', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    await guest.hold(set)
    await guest.inside('dd if=/dev/zero of=/srv/a/big bs=1M count=36 conv=fsync 2>/dev/null; rm /srv/a/big; sync')
    await guest.kitRefuses(5, /datavg\/data has overflowed/, 'status', set).catch(async (error: unknown) => {
      throw new Error(await guest.inside('dmsetup status'), { cause: error })
    })
    await guest.kitDone('release', set)
    assert.equal(await guest.traces(), '')
    assert.ok((await guest.verdict()).crossConsistent)
  })

  it('notices that a volume was changed behind its back', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    await guest.hold(set)
    await guest.inside('dmsetup table umbra-0badcafe-1-real | dmsetup load datavg-data; dmsetup resume datavg-data')
    await guest.kitRefuses(5, /behind the back/, 'status', set)
    await guest.kitDone('release', set)
    assert.equal(await guest.traces(), '')
  })

  it('goes on when the commit is killed while the volumes stand still', async () => {
    const guest = guestOf()
    await guest.kitDone('prepare', set, '300')
    const instant = `/run/umbra-guest/${set}/instant`
    // Where the volumes are suspended and nothing has resumed them yet.
    await guest.inside(`sed -i 's/^code=0$/code=0; echo $$ >pid/; s/^go_on || code=1$/sleep 60; go_on/' ${instant}`)
    const kill = `until [ -e pid ]; do sleep 0.1; done; sleep 1; kill -KILL $(cat pid)`
    await guest.inside(`cp /bin/busybox /run/umbra-guest/bin/killer; cd /run/umbra-guest/${set};
      (exec /run/umbra-guest/bin/busybox sh -c '${kill}') >/dev/null 2>&1 </dev/null &`)
    const { exitCode, stderr } = await guest.kit('commit', set)
    assert.ok(exitCode === 1 || exitCode === 5, stderr)
    for (let tries = 0; tries < 20; tries += 1) {
      if ((await guest.inside('dmsetup info -c --noheadings -o suspended | sort -u')) === 'Active') break
      await setTimeout(500)
    }
    const { logs } = await guest.verdict()
    await setTimeout(500)
    assert.ok(((await guest.verdict()).logs[0]?.last ?? 0) > (logs[0]?.last ?? 0), 'the writer goes on')
    await guest.kitRefuses(5, /stood still/, 'status', set)
    await guest.kitDone('release', set)
    assert.equal(await guest.traces(), '')
    assert.ok((await guest.verdict()).crossConsistent)
  })
}
