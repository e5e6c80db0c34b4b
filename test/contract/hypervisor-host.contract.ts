/**
 * The part of the Hypervisor contract that a restore on another host asks: what this host has for a VM.
 */
import assert from 'node:assert/strict'
import type { MachineNeeds } from '../../src/vm/machine-needs.ts'
import type { ContractTest } from './hypervisor.contract.ts'
import type { HypervisorScene } from './hypervisor-scene.ts'

/** What the running VM of the scene needs, as its configuration says it. */
function needsOf({ running }: HypervisorScene): MachineNeeds {
  const { configuration } = running
  const machine = /machine=['"]([^'"]+)/.exec(configuration)?.[1] ?? ''
  const kind = /<domain [^>]*type=['"](\w+)/.exec(configuration)?.[1] ?? 'kvm'
  return { kind, architecture: 'x86_64', machine, bootFiles: [], media: [] }
}

export function hostTests(contractTest: ContractTest): void {
  contractTest('hostFacts: a VM that runs here has all that it needs', async (scene) => {
    const needs = needsOf(scene)
    const facts = await scene.hypervisor.hostFacts(needs)
    assert.ok(facts.emulator?.startsWith('/'))
    assert.ok(facts.machines.includes(needs.machine), `${needs.machine} in ${facts.machines.join(' ')}`)
    assert.equal(facts.cpuProblem, undefined)
    for (const format of ['raw', 'qcow2', 'vpc']) assert.ok(facts.diskFormats.includes(format))
    assert.ok(!facts.diskFormats.includes('vhdx'))
  })

  contractTest('hostFacts: what is not here is told, and is no failure', async (scene) => {
    const needs = needsOf(scene)
    const missing = { bootFiles: ['/nowhere/kernel'], media: [{ target: 'sdz', path: '/nowhere/medium.iso' }] }
    const facts = await scene.hypervisor.hostFacts({ ...needs, ...missing, machine: 'pc-q35-0.1' })
    assert.deepEqual([...facts.missing].sort(), ['/nowhere/kernel', '/nowhere/medium.iso'])
    const strange = await scene.hypervisor.hostFacts({ ...needs, architecture: 'z80' })
    assert.deepEqual([strange.emulator, strange.machines], [undefined, []])
    const foreign = await scene.hypervisor.hostFacts({ ...needs, kind: 'xen' })
    assert.equal(foreign.emulator, undefined)
  })
}
