/**
 * A world at rest, to be had again: a host that takes long to prepare is prepared once, and each test gets a copy. Nothing may
 * be under way in it: no open image, no backup job, no shadow copies inside a guest.
 */
import assert from 'node:assert/strict'
import type { Clock } from '../../src/base/clock.ts'
import { SimWorld } from './sim-world.ts'

/**
 * Keeps how `world` is now. Each call of the answer makes a world like it, on a clock that has to show the same time. Files that
 * exist for real are the caller's: they have to be beneath the same directory again.
 */
export function keepWorld(world: SimWorld): (clock: Clock) => SimWorld {
  const kept = copyOf(world, world.clock)
  return (clock) => copyOf(kept, clock)
}

function copyOf(from: SimWorld, clock: Clock): SimWorld {
  assert.equal(from.handles.size + from.changedFsids.size, 0, 'something is open')
  const world = new SimWorld({
    clock,
    directory: from.path(''),
    stepsPerCall: from.stepsPerCall,
    files: from.files.copy(),
  })
  world.host = { ...from.host }
  world.hypervisorDown = from.hypervisorDown
  world.networks.clear()
  for (const [name, network] of from.networks) world.networks.set(name, { ...network })
  for (const [uuid, vm] of from.vms) {
    assert.ok(vm.live?.backupJob === undefined && vm.points.length === 0, 'tracking points are not copied')
    world.vms.set(uuid, structuredClone(vm))
    const [guest, requestor] = [world.guestOf(uuid), world.requestorOf(uuid)]
    const { agentRuns, ipAddresses, os, behaviour, programs } = from.guestOf(uuid)
    Object.assign(guest, { agentRuns, ipAddresses, os })
    Object.assign(guest.behaviour, behaviour)
    for (const [path, program] of programs) guest.programs.set(path, program)
    assert.equal(from.requestorOf(uuid).areas.size, 0, 'a guest keeps shadow copies')
    Object.assign(requestor.behaviour, structuredClone(from.requestorOf(uuid).behaviour))
  }
  for (const [key, sets] of from.frozenSets) world.frozenSets.set(key, structuredClone(sets))
  world.beginning = from.beginning
  return world
}
