/**
 * What a VM needs of the host that is to run it, and what a host has: types only, between the hypervisor and the restore.
 */

/** What a configuration needs of the host that is to run it; what it does not name any host of that kind has. */
export interface MachineNeeds {
  /** `kvm`, `qemu` …: what executes the guest's instructions. */
  readonly kind: string
  readonly architecture: string
  readonly machine: string
  readonly emulator?: string
  /** The processor as the configuration describes it, to be compared with the host's. */
  readonly cpu?: string
  /** `path` of the firmware, unless the hypervisor is to choose one of that kind. */
  readonly firmware?: { readonly kind: 'efi' | 'bios'; readonly path?: string; readonly secure: boolean }
  readonly tpm?: { readonly backend: string }
  /** Files of the host that the VM boots from, besides its disks: kernel, initial RAM disk. */
  readonly bootFiles: readonly string[]
  /** Media in drives, by target. */
  readonly media: readonly { readonly target: string; readonly path: string }[]
}

/** What this host has for a VM with such needs. */
export interface HostFacts {
  /** The program that would run it: what the configuration names if it is there, else the hypervisor's own. */
  readonly emulator?: string
  /** Machine types of that program, aliases included; of another hypervisor's naming nothing. */
  readonly machines: readonly string[]
  /** Why the processor can not be given to a guest; undefined when it can. */
  readonly cpuProblem?: string
  /** Firmware files that are there, the one that the configuration names among them. */
  readonly firmwares: readonly string[]
  readonly choosesEfi: boolean
  readonly secureBoot: boolean
  /** Kinds of TPM backends; undefined when the hypervisor does not tell. */
  readonly tpmBackends?: readonly string[]
  /** Formats of images that a VM can run from. */
  readonly diskFormats: readonly string[]
  /** Network devices of the host, bridges and others. */
  readonly netDevices: readonly string[]
  /** Which of the files that the configuration names are not there. */
  readonly missing: readonly string[]
}
