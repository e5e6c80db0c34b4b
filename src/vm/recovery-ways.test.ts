/**
 * The three ways of auto-recovery on fakes: who does it, who takes over, in which order, and what is closed again.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup, type UndoRecord } from '../base/cleanup.ts'
import { failure } from '../errors.ts'
import type { Recovery } from './auto-recovery.ts'
import type { ChangedFsid } from './guest-requestor.ts'
import type { Hypervisor, VmFacts } from './hypervisor.ts'
import { openAutoRecovery, type RecoveryTools, type WritableDevice } from './recovery-ways.ts'

const notUnderstood = failure('VOLUMES_NOT_UNDERSTOOD', { disk: 'sda', reason: 'a cache' })
const lost = failure('GUEST_SET_LOST', { vm: 'shop', reason: 'overflow' })

function sandbox(trouble: { reading?: Error; reverting?: Error; changed?: readonly ChangedFsid[] } = {}) {
  const did: string[] = []
  const note = async (what: string, error?: Error) => {
    did.push(what)
    if (error !== undefined) throw error
  }
  const hypervisor = {
    attachCopy: (_vm: string, { serial }: { serial: string }) => note(`attach ${serial}`),
    detachCopy: (_vm: string, serial: string) => note(`detach ${serial}`),
    requestor: () => ({
      revert: async (_set: string, serials: readonly string[]) => {
        await note(`revert ${serials.length} in the guest`, trouble.reverting)
        return trouble.changed ?? []
      },
    }),
  } as unknown as Hypervisor
  const device = {} as WritableDevice
  const tools: RecoveryTools = {
    hypervisor,
    clock: new ManualClock(),
    openWritable: async () => ({
      open: async () => device,
      [Symbol.asyncDispose]: () => note('close'),
    }),
    revertByReading: () => note('read', trouble.reading),
    restoreFsid: (_device, fsid) => note(`fsid ${fsid}`),
    startHelperVm: async () => {
      await note('helper starts')
      return {
        revert: (vm, _set, disks) => note(`helper reverts ${disks.length} of ${vm}`),
        [Symbol.asyncDispose]: () => note('helper ends'),
      }
    },
  }
  const handlers = { 'detach-copy': (record: UndoRecord) => hypervisor.detachCopy('', String(record.serial)) }
  const image = (target: string) => ({ format: 'qcow2', storage: { file: `/${target}` } }) as const
  const recovery: Recovery = {
    vm: { uuid: 'u', name: 'shop' } as VmFacts,
    set: '0a1b2c3d',
    copies: ['sda', 'sdb'].map((target) => ({ target, image: image(target) })),
    undo: new Cleanup(undoLog().log, handlers),
    signal: new AbortController().signal,
    tell: () => undefined,
  }
  return { did, tools, recovery }
}

describe('auto-recovery', () => {
  test('by reading closes what it opened', async () => {
    const { did, tools, recovery } = sandbox()
    await using ways = openAutoRecovery(tools)
    assert.equal(await ways['by-reading'](recovery), 'by-reading')
    assert.deepEqual(did, ['read', 'close'])
  })

  test('by reading leaves what it does not understand to the helper VM, and says who did it', async () => {
    const { did, tools, recovery } = sandbox({ reading: notUnderstood })
    {
      await using ways = openAutoRecovery(tools)
      assert.equal(await ways['by-reading'](recovery), 'on-host')
    }
    assert.deepEqual(did, ['read', 'close', 'helper starts', 'helper reverts 2 of shop', 'helper ends'])
  })

  test('hands the signal of the session to whoever may take long', async () => {
    const { tools, recovery } = sandbox()
    const signals: AbortSignal[] = []
    const watching: RecoveryTools = {
      ...tools,
      revertByReading: async (_vm, _set, _disks, signal) => signals.push(signal),
      startHelperVm: async () => ({
        revert: async (_vm, _set, _disks, signal) => void signals.push(signal),
        [Symbol.asyncDispose]: async () => undefined,
      }),
    }
    await using ways = openAutoRecovery(watching)
    await ways['by-reading'](recovery)
    await ways['on-host'](recovery)
    assert.equal(signals.length, 2)
    for (const signal of signals) assert.equal(signal, recovery.signal)
  })

  test('by reading leaves a set that is lost to nobody', async () => {
    const { did, tools, recovery } = sandbox({ reading: lost })
    await using ways = openAutoRecovery(tools)
    await assert.rejects(ways['by-reading'](recovery), { code: 'GUEST_SET_LOST' })
    assert.deepEqual(did, ['read', 'close'])
  })

  test('on the host starts one helper VM for all, and ends it with the window', async () => {
    const { did, tools, recovery } = sandbox()
    {
      await using ways = openAutoRecovery(tools)
      await Promise.all([ways['on-host'](recovery), ways['on-host'](recovery)])
    }
    assert.equal(did.filter((what) => what === 'helper starts').length, 1)
    assert.equal(did.at(-1), 'helper ends')
  })

  test('in the guest detaches before it gives a file system its id back', async () => {
    const { did, tools, recovery } = sandbox({ changed: [{ serial: 'umbra-0a1b2c3d-sdb', fsid: 'f' }] })
    await using ways = openAutoRecovery(tools)
    assert.equal(await ways['in-guest'](recovery), 'in-guest')
    const [sda, sdb] = ['umbra-0a1b2c3d-sda', 'umbra-0a1b2c3d-sdb']
    assert.deepEqual(did, [
      `attach ${sda}`,
      `attach ${sdb}`,
      'revert 2 in the guest',
      `detach ${sdb}`,
      `detach ${sda}`,
      'fsid f',
      'close',
    ])
  })

  test('in the guest detaches all copies when the revert fails', async () => {
    const { did, tools, recovery } = sandbox({ reverting: new Error('merge failed') })
    await using ways = openAutoRecovery(tools)
    await assert.rejects(ways['in-guest'](recovery), /in-guest\): merge failed/)
    assert.equal(did.filter((what) => what.startsWith('detach')).length, 2)
  })
})
