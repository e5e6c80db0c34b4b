/**
 * Other hosts: what a VM needs is there, or can be had in another place, or the restore is refused before it begins.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { sampleFacts, sampleHost, sampleNeeds } from '../../test/fault/sample-host.ts'
import { storedVm } from '../../test/fault/sample-vm.ts'
import type { HostFacts, MachineNeeds } from './machine-needs.ts'
import { nearestMachine, planFit } from './restore-fit.ts'
import { planVmRestore } from './restore-plan.ts'

const fit = (
  needs: Partial<MachineNeeds>,
  host: Partial<HostFacts> = {},
  how: { memory?: boolean; copy?: boolean; start?: boolean } = {},
) =>
  planFit({ needs: sampleNeeds(needs), host: sampleFacts(host) }, { memory: false, copy: false, start: false, ...how })

test('a host that has everything changes nothing', () => {
  assert.deepEqual(fit({}), { edit: {}, steps: [], warnings: [], obstacles: [] })
})

test('an emulator in another place is taken from there, and that is told', () => {
  const { edit, steps, obstacles } = fit({ emulator: '/opt/qemu/bin/qemu' })
  assert.deepEqual([edit, obstacles], [{ emulator: '/usr/bin/qemu-system-x86_64' }, []])
  assert.match(steps.join(), /\/opt\/qemu\/bin\/qemu is not here/)
})

test('a kind of VM that the host can not run is refused, in words', () => {
  const { emulator: _, ...without } = sampleFacts()
  const made = planFit({ needs: sampleNeeds(), host: without }, { memory: false, copy: false, start: false })
  assert.match(made.obstacles.join(), /no VM of the kind kvm \(hardware virtualisation\) for x86_64/)
})

describe('a machine type that is not known', () => {
  test('becomes the next newer one of its family, else the newest, else the alias; and the guest is thought of', () => {
    const machines = ['pc-q35-6.2', 'pc-q35-7.2', 'pc-q35-8.0', 'pc-i440fx-8.0', 'q35', 'pc', 'pc-q35-rhel9.2.0']
    assert.equal(nearestMachine('pc-q35-7.0', machines), 'pc-q35-7.2')
    assert.equal(nearestMachine('pc-q35-9.1', machines), 'pc-q35-8.0')
    assert.equal(nearestMachine('pc-q35-rhel8.6.0', machines), 'pc-q35-rhel9.2.0')
    assert.equal(nearestMachine('pc-i440fx-jammy', machines), 'pc')
    assert.equal(nearestMachine('microvm', machines), undefined)
    const { edit, warnings, obstacles } = fit({ machine: 'pc-q35-7.0' })
    assert.deepEqual([edit, obstacles], [{ machine: 'pc-q35-7.2' }, []])
    assert.match(warnings.join(), /pc-q35-7.0 is not known here: it becomes pc-q35-7.2/)
  })

  test('is refused for a VM that goes on from its memory, and when nothing is like it', () => {
    assert.match(fit({ machine: 'pc-q35-7.0' }, {}, { memory: true }).obstacles.join(), /memory goes on only on/)
    assert.match(fit({ machine: 'microvm' }).obstacles.join(), /neither the machine type microvm nor one like it/)
  })
})

test('a processor that the host lacks is refused with the reason', () => {
  const { obstacles } = fit({}, { cpuProblem: 'missing features: avx512f' })
  assert.match(obstacles.join(), /processor can not be had.*avx512f/)
})

describe('firmware', () => {
  const firmware = (path?: string, secure = false): Partial<MachineNeeds> => ({
    firmware: { kind: 'efi', secure, ...(path === undefined ? {} : { path }) },
  })

  test('in another place is taken from there', () => {
    const made = fit(firmware('/opt/ovmf/OVMF_CODE.fd'))
    assert.deepEqual([made.edit, made.obstacles], [{ firmware: '/usr/share/OVMF/OVMF_CODE.fd' }, []])
  })

  test('of another build is no replacement: refused, and what there is is told', () => {
    const made = fit(firmware('/opt/ovmf/OVMF_CODE_4M.secboot.fd'))
    assert.match(made.obstacles.join(), /not on this host; there are: \/usr\/share\/OVMF\/OVMF_CODE.fd/)
  })

  test('that the hypervisor chooses, or that does secure boot, must be there', () => {
    assert.deepEqual(fit(firmware()).obstacles, [])
    assert.match(fit(firmware(), { choosesEfi: false }).obstacles.join(), /boots by UEFI/)
    assert.match(fit(firmware(undefined, true), { secureBoot: false }).obstacles.join(), /secure boot/)
  })
})

test('a TPM without swtpm is refused; what the hypervisor does not tell is not held against it', () => {
  const tpm = { tpm: { backend: 'emulator' } }
  assert.deepEqual(fit(tpm).obstacles, [])
  assert.match(fit(tpm, { tpmBackends: [] }).obstacles.join(), /no swtpm/)
  const { tpmBackends: _, ...silent } = sampleFacts()
  const how = { memory: false, copy: false, start: false }
  assert.deepEqual(planFit({ needs: sampleNeeds(tpm), host: silent }, how).obstacles, [])
  const passed = { tpm: { backend: 'passthrough' } }
  assert.match(fit(passed).obstacles.join(), /passthrough/)
  assert.deepEqual(fit(passed, {}, { copy: true }).obstacles, [], 'a copy does not get it anyway')
})

test('a medium that is not here is taken out of its drive; a kernel that is not here is told, or refused at a start', () => {
  const needs = { media: [{ target: 'sdh', path: '/iso/a.iso' }], bootFiles: ['/boot/kernel'] }
  const host = { missing: ['/iso/a.iso', '/boot/kernel'] }
  const made = fit(needs, host)
  assert.deepEqual([made.edit, made.obstacles], [{ eject: ['sdh'] }, []])
  assert.match(made.warnings.join('; '), /sdh loses its medium .*; it boots from \/boot\/kernel, which is not here/)
  assert.match(fit(needs, host, { start: true }).obstacles.join(), /\/boot\/kernel/)
})

test('all of it is part of the plan of a restore', () => {
  const here = sampleHost([], {
    fit: {
      needs: sampleNeeds({ machine: 'pc-q35-7.0', emulator: '/opt/q', tpm: { backend: 'emulator' } }),
      host: sampleFacts({ tpmBackends: [] }),
    },
  })
  const made = planVmRestore(storedVm(), { networks: {}, start: false }, here)
  assert.equal(made.edit.machine, 'pc-q35-7.2')
  assert.ok(made.steps.some((step) => step.startsWith('have it run by /usr/bin/qemu')))
  assert.match(made.obstacles.join(), /swtpm/)
})
