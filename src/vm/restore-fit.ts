/**
 * Whether this host can run a VM that was backed up on another one. Refused with the reason before anything is touched, or
 * rewritten where the guest can not be harmed: the emulator's path, the place of the same firmware, for a VM that starts
 * anew also the nearest machine type.
 */
import { basename } from 'node:path'
import type { ConfigurationEdit } from './hypervisor.ts'
import type { HostFacts, MachineNeeds } from './machine-needs.ts'

/** What the configuration needs, and what is here. */
export interface Fit {
  readonly needs: MachineNeeds
  readonly host: HostFacts
}

export interface FitPlan {
  readonly edit: Pick<ConfigurationEdit, 'emulator' | 'machine' | 'firmware' | 'eject'>
  readonly steps: readonly string[]
  readonly warnings: readonly string[]
  readonly obstacles: readonly string[]
}

/** `memory`: it goes on from its memory, which fits nothing but the hardware that it was saved on. */
export function planFit(fit: Fit, how: { memory: boolean; copy: boolean; start: boolean }): FitPlan {
  const { needs, host } = fit
  const parts: FitPlan[] = [fitMedia(fit), fitBootFiles(fit, how.start)]
  if (host.emulator === undefined) {
    const reason = needs.kind === 'kvm' ? ' (hardware virtualisation)' : ''
    parts.push(cannot(`this host runs no VM of the kind ${needs.kind}${reason} for ${needs.architecture}`))
  } else {
    parts.push(fitEmulator(fit), fitMachine(fit, how.memory), fitFirmware(fit), fitTpm(fit, how.copy))
    if (host.cpuProblem !== undefined)
      parts.push(cannot(`its processor can not be had on this host: ${host.cpuProblem}`))
  }
  return {
    edit: Object.assign({}, ...parts.map(({ edit }) => edit)),
    steps: parts.flatMap(({ steps }) => steps),
    warnings: parts.flatMap(({ warnings }) => warnings),
    obstacles: parts.flatMap(({ obstacles }) => obstacles),
  }
}

const nothing: FitPlan = { edit: {}, steps: [], warnings: [], obstacles: [] }
const cannot = (obstacle: string): FitPlan => ({ ...nothing, obstacles: [obstacle] })

function fitEmulator({ needs, host: { emulator = '' } }: Fit): FitPlan {
  if (needs.emulator === undefined || needs.emulator === emulator) return nothing
  return { ...nothing, edit: { emulator }, steps: [`have it run by ${emulator}: ${needs.emulator} is not here`] }
}

function fitMachine({ needs: { machine }, host: { machines } }: Fit, memory: boolean): FitPlan {
  if (machine === '' || machines.includes(machine)) return nothing
  if (memory) return cannot(`its memory goes on only on the machine type ${machine}, which this host does not know`)
  const nearest = nearestMachine(machine, machines)
  if (nearest === undefined) return cannot(`this host knows neither the machine type ${machine} nor one like it`)
  const warning = `the machine type ${machine} is not known here: it becomes ${nearest}, and the guest may find new hardware`
  return { ...nothing, edit: { machine: nearest }, steps: [`make it a ${nearest}`], warnings: [warning] }
}

function fitFirmware({ needs: { firmware }, host }: Fit): FitPlan {
  if (firmware === undefined) return nothing
  const { kind, path, secure } = firmware
  if (secure && !host.secureBoot) return cannot('its firmware does secure boot, and this host has none that does')
  if (path === undefined) {
    return kind === 'efi' && !host.choosesEfi ? cannot('it boots by UEFI, and this host has no such firmware') : nothing
  }
  if (host.firmwares.includes(path)) return nothing
  const same = host.firmwares.find((one) => basename(one) === basename(path))
  if (same === undefined) {
    const there = host.firmwares.join(', ') || 'none'
    return cannot(`its firmware ${path} is not on this host; there are: ${there}`)
  }
  return { ...nothing, edit: { firmware: same }, steps: [`boot it by the firmware ${same}: ${path} is not here`] }
}

function fitTpm({ needs: { tpm }, host: { tpmBackends } }: Fit, copy: boolean): FitPlan {
  if (tpm === undefined || tpmBackends === undefined || tpmBackends.includes(tpm.backend)) return nothing
  if (copy && tpm.backend !== 'emulator') return nothing // left out of a copy anyway
  const what = tpm.backend === 'emulator' ? 'an emulated TPM, and this host has no swtpm' : `a TPM (${tpm.backend})`
  return cannot(`it has ${what}${tpm.backend === 'emulator' ? '' : ', which this host does not have'}`)
}

function fitMedia({ needs, host }: Fit): FitPlan {
  const gone = needs.media.filter(({ path }) => host.missing.includes(path))
  if (gone.length === 0) return nothing
  const warnings = gone.map(({ target, path }) => `${target} loses its medium ${path}, which is not here`)
  return { ...nothing, edit: { eject: gone.map(({ target }) => target) }, warnings }
}

function fitBootFiles({ needs, host }: Fit, start: boolean): FitPlan {
  const told = needs.bootFiles
    .filter((path) => host.missing.includes(path))
    .map((path) => `it boots from ${path}, which is not here: without it, it can not start`)
  return start ? { ...nothing, obstacles: told } : { ...nothing, warnings: told }
}

const families: Readonly<Record<string, string>> = {
  'pc-q35': 'q35',
  'pc-i440fx': 'pc',
  virt: 'virt',
  pseries: 'pseries',
  's390-ccw-virtio': 's390-ccw-virtio',
}

/**
 * The machine type of the same family and vendor that is next newer, else the newest; of another vendor's numbers nothing
 * can be said, and the family's alias is taken. QEMU keeps old versions for years and never takes hardware out of newer ones.
 */
export function nearestMachine(wanted: string, known: readonly string[]): string | undefined {
  const family = Object.keys(families).find((one) => wanted === one || wanted.startsWith(`${one}-`))
  if (family === undefined) return undefined
  const { vendor, version } = readMachine(wanted, family)
  const kin = known
    .filter((name) => name.startsWith(`${family}-`))
    .map((name) => ({ name, ...readMachine(name, family) }))
    .filter((one) => one.vendor === vendor && one.version !== undefined && version !== undefined)
    .sort((one, other) => (one.version ?? 0) - (other.version ?? 0))
  const found = kin.find((one) => (one.version ?? 0) > (version ?? 0)) ?? kin.at(-1)
  const alias = families[family] ?? family
  return found?.name ?? (known.includes(alias) ? alias : undefined)
}

/** `pc-q35-rhel9.2.0` is of the vendor `rhel`, version 9 002 000. */
function readMachine(name: string, family: string): { vendor: string; version: number | undefined } {
  const found = /^-?([a-z-]*?)-?(\d+)\.(\d+)(?:\.(\d+))?$/.exec(name.slice(family.length))
  if (found === null) return { vendor: name.slice(family.length), version: undefined }
  const [, vendor = '', major, minor, patch = '0'] = found
  return { vendor, version: Number(major) * 1e6 + Number(minor) * 1e3 + Number(patch) }
}
