/**
 * bench/fleet: one snapshot set of 10, 100 and 1000 simulated VMs (A3). The VMs cost nothing and answer after a few
 * milliseconds, so that what is left is Umbra's own: planning, freezing in waves, memory and time per VM. Run it by hand:
 * `bench/fleet [--method METHOD] [--instants-at-once N] [VMS...]`.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { systemClock } from '../src/base/clock.ts'
import { OverlayProvider } from '../src/libvirt/overlay-provider.ts'
import { createRepository } from '../src/repository/repository.ts'
import { backup, planBackup } from '../src/requester/backup.ts'
import { defaultPolicy, type MethodRequest } from '../src/vm/method.ts'
import { openAutoRecovery } from '../src/vm/recovery-ways.ts'
import { vmUndoHandlers } from '../src/vm/undo.ts'
import { VmWriter } from '../src/vm/vm-writer.ts'
import { defaultLimits } from '../src/vss/vocabulary.ts'
import { simRecoveryTools } from '../test/sim/sim-recovery.ts'
import { type SimVmSpec, simulatedWorld } from '../test/sim/sim-world.ts'

const answerMs = 5
const disk = { sizeBytes: 64 * 1024 }
const vm: SimVmSpec = { disks: { sda: disk, sdb: disk }, guest: { answers: { lateByMs: answerMs } } }

interface Row {
  readonly vms: number
  readonly planMs: number
  readonly createMs: number
  readonly longestFreezeMs: number
  readonly totalMs: number
  readonly heapMiB: number
}

async function measureFleet(count: number, method: MethodRequest, instantsAtOnce: number): Promise<Row> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-fleet-'))
  await using _directory = { [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }) }
  const names = Array.from({ length: count }, (_, index) => `vm${String(index).padStart(4, '0')}`)
  const vms = Object.fromEntries(names.map((name) => [name, vm]))
  await using world = simulatedWorld(vms, { clock: systemClock, stepsPerCall: 0, directory })
  const { hypervisor } = world
  await using repository = await createRepository(join(directory, 'repository'), {
    chunkSizeBytes: 64 * 1024,
    encryption: 'none',
  })
  const tools = { ...simRecoveryTools(world), hypervisor, clock: systemClock }
  const writer = new VmWriter({
    hypervisor,
    policy: { ...defaultPolicy, method },
    workDirectory: join(directory, 'work'),
    openAutoRecovery: () => openAutoRecovery(tools),
  })
  const provider = new OverlayProvider({
    hypervisor,
    openImages: async (images) => {
      const open = new Map(images.map(({ name, image }) => [name, world.openImage(image)]))
      const close = async () => {
        for (const source of open.values()) await source[Symbol.asyncDispose]()
      }
      const lasting = (name: string) => ({ ...open.get(name), [Symbol.asyncDispose]: async () => undefined })
      return { open: async (name) => lasting(name) as never, [Symbol.asyncDispose]: close }
    },
    makeLayer: (path, base, sizeBytes) => world.makeWritableCopy(path, base, sizeBytes),
    overlayDirectory: join(directory, 'overlays'),
  })
  globalThis.gc?.()
  const before = process.memoryUsage().heapUsed
  const planBegan = performance.now()
  await planBackup({ names: [], all: true, except: [] }, [writer])
  const planMs = performance.now() - planBegan
  let heap = 0
  const result = await backup(
    { names: [], all: true, except: [] },
    {
      writers: [writer],
      providers: [provider],
      limits: defaultLimits,
      instantsAtOnce,
      clock: systemClock,
      repository,
      session: {
        what: 'backup',
        stateDirectory: join(directory, 'state'),
        uri: hypervisor.uri,
        handlers: { ...vmUndoHandlers(hypervisor), 'discard-point': async () => undefined },
        clock: systemClock,
        signal: new AbortController().signal,
      },
      onEvent: ({ event }) => {
        if (event !== 'PostSnapshot') return
        globalThis.gc?.()
        heap = process.memoryUsage().heapUsed - before
      },
    },
  )
  const at = (
    name: string, // the guests have events of their own
  ) => result.events.find(({ event, writer: who }) => event === name && who === writer.name)?.atMs ?? 0
  const freezes = result.vms.map(({ freezeMs }) => Number(freezeMs))
  return {
    vms: count,
    planMs,
    createMs: at('PostSnapshot') - at('PrepareForSnapshot'),
    longestFreezeMs: Math.max(...freezes),
    totalMs: result.durationMs,
    heapMiB: heap / 2 ** 20,
  }
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'instants-at-once': { type: 'string', default: '8' },
    method: { type: 'string', default: 'guest-freeze' },
  },
})
const counts = positionals.length > 0 ? positionals.map(Number) : [10, 100, 1000]
console.log(
  `${values.method}; ${values['instants-at-once']} instants side by side; every guest answers after ${answerMs} ms`,
)
console.log('   VMs  plan/VM  create/VM  longest freeze  whole/VM  heap/VM')
for (const count of counts) {
  const row = await measureFleet(count, values.method as MethodRequest, Number(values['instants-at-once']))
  const each = (ms: number) => `${(ms / count).toFixed(1)} ms`
  const cells = [
    String(count).padStart(6),
    each(row.planMs).padStart(8),
    each(row.createMs).padStart(10),
    `${row.longestFreezeMs.toFixed(0)} ms`.padStart(15),
    each(row.totalMs).padStart(9),
    `${((row.heapMiB * 1024) / count).toFixed(0)} KiB`.padStart(8),
  ]
  console.log(cells.join(' '))
}
