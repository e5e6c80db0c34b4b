/**
 * The simulated hypervisor passes the contract, in memory and with files that exist for real.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../src/base/clock.ts'
import { attachedCopies } from '../sim/sim-hot-add.ts'
import { verifyRecords } from '../sim/sim-records.ts'
import { type SimWorld, type SimWorldOptions, simulatedWorld } from '../sim/sim-world.ts'
import { type HypervisorContractWorld, hypervisorContract } from './hypervisor.contract.ts'

hypervisorContract('simulator', async () => contractWorld({}))

hypervisorContract('simulator with real files', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-sim-'))
  const world = contractWorld({ directory })
  return { ...world, [Symbol.asyncDispose]: () => rm(directory, { recursive: true }) }
})

function contractWorld(options: SimWorldOptions): HypervisorContractWorld {
  const world = simulatedWorld(
    {
      web01: { disks: { sda: {}, sdb: { format: 'qcow2', template: '/images/template.raw' } } },
      old95: { power: 'off' },
      ide98: { disks: { hda: { bus: 'ide' } } },
    },
    { clock: systemClock, ...options },
  )
  world.tick(7)
  world.requestor('web01').behaviour.detachLimitMs = 50
  const { behaviour, programs } = world.guest('web01')
  programs.set('/bin/flood', () => ({ exitCode: 0, stdout: 'x'.repeat(1_500_000), stderr: '' }))
  let paths = 0
  let slot = 8
  return {
    hypervisor: world.hypervisor,
    twoDisks: { name: 'web01', targets: ['sda', 'sdb'] },
    off: { name: 'old95', target: 'sda' },
    freshPath: (name) => world.path(`/work/${++paths}-${name}`),
    fileExists: async (path) => world.files.has(path),
    createFile: async (path) => world.files.put(path, Buffer.from('somebody else')),
    removeFile: async (path) => world.files.remove(path),
    writeInside: async (vm, target, marker) => world.guest(vm).write(target, ++slot * 4096, marker),
    contains: async (image, marker) => Buffer.from(world.imageBytes(image)).includes(marker),
    bootOf: async (vm) => world.guest(vm).memory?.bootId ?? 'none',
    programs: { flood: { path: '/bin/flood', args: [] } },
    strayOverlay: async (path, base) => {
      world.createImage({ format: 'qcow2', storage: { file: path } }, world.files.disk(base).sizeBytes, base)
    },
    openReader: async (image) => world.openImage(image),
    verifyRecords: async (a, b) => verifyRecords(world.imageBytes(a), world.imageBytes(b)),
    loseNextFreeze: async (_, afterMs) => {
      behaviour.freeze = { lostReplyFreezesAfterMs: afterMs }
    },
    thawBySelf: async (_, afterMs) => {
      behaviour.selfThawMs = afterMs
      return until(() => {
        behaviour.selfThawMs = undefined
      })
    },
    silenceAgent: async () => {
      Object.assign(behaviour, { answers: 'never', responseTimeoutMs: 50, thawTimeoutMs: 50 })
      return until(() => {
        behaviour.answers = 'at once'
      })
    },
    fillHost: async (vm) => fillHost(world, vm),
    kill: async (vm) => world.killVm(vm),
    makeWritableCopy: (path, base) => world.makeWritableCopy(path, base, undefined),
    writeToCopy: async (vm, serial, marker) => {
      const image = attachedCopies(world.vm(vm)).find((copy) => copy.serial === serial)?.image
      if (image === undefined) throw new Error(`${serial} is not attached`)
      world.files.disk(image).write(++slot * 4096, Buffer.from(marker))
    },
    withoutScsi: 'ide98',
    hangDetach: async (vm) => {
      const { behaviour } = world.requestor(vm)
      behaviour.detachHangs = true
      return until(() => {
        behaviour.detachHangs = false
      })
    },
    takesShadowCopies: true,
    removeNetwork: async (name) => void world.networks.delete(name),
    [Symbol.asyncDispose]: () => world[Symbol.asyncDispose](),
  }
}

function fillHost(world: SimWorld, vm: string): AsyncDisposable {
  world.files.capacityBytes = world.files.usedBytes
  world.guest(vm).write('sda', 6 * 4096, 'no room for this')
  return until(() => {
    world.files.capacityBytes = Number.POSITIVE_INFINITY
  })
}

const until = (end: () => void): AsyncDisposable => ({ [Symbol.asyncDispose]: async () => end() })
