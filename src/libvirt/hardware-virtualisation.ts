/**
 * Whether this machine's KVM really runs guests. That /dev/kvm exists and opens proves nothing: under some hosts QEMU
 * aborts, or the guest hangs. So QEMU's firmware is run to its end ("No bootable device"), which takes 0.3 s where it works.
 */
import { spawn } from 'node:child_process'
import { access, constants } from 'node:fs/promises'
import { systemClock } from '../base/clock.ts'

const limitMs = 3000
const lastWords = 'No bootable device'

export type HardwareVirtualisation = 'usable' | 'emulated' | 'unknown'

export async function hardwareVirtualisation(): Promise<{ found: HardwareVirtualisation; why: string }> {
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK)
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    return missing
      ? { found: 'emulated', why: 'there is no /dev/kvm: VMs run, but slowly' }
      : { found: 'unknown', why: 'this user may not open /dev/kvm; VMs of libvirt may' }
  }
  if (process.arch !== 'x64')
    return { found: 'unknown', why: `/dev/kvm is there; it is not tried out on ${process.arch}` }
  switch (await runFirmware()) {
    case 'ran':
      return { found: 'usable', why: 'KVM ran a firmware to its end' }
    case 'no program':
      return { found: 'unknown', why: '/dev/kvm is there, but no qemu-system-x86_64 to try it out with' }
    case 'did not run':
      return { found: 'emulated', why: '/dev/kvm is there but runs no guest: VMs run, but slowly' }
  }
}

function runFirmware(): Promise<'ran' | 'did not run' | 'no program'> {
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...['-accel', 'kvm', '-cpu', 'host', '-machine', 'q35', '-m', '64', '-nodefaults', '-display', 'none'],
      ...['-no-reboot', '-chardev', 'stdio,id=log', '-device', 'isa-debugcon,iobase=0x402,chardev=log'],
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  )
  child.unref() // a process that is stuck in the kernel's KVM may take its time to die
  return new Promise((resolve) => {
    let text = ''
    const end = (outcome: 'ran' | 'did not run' | 'no program') => {
      limit.cancel()
      child.stdout.destroy()
      child.kill('SIGKILL')
      resolve(outcome)
    }
    const limit = systemClock.timer(limitMs, () => end('did not run'))
    child.on('error', () => end('no program'))
    child.on('close', () => end(text.includes(lastWords) ? 'ran' : 'did not run'))
    child.stdout.on('data', (bytes: Buffer) => {
      text = (text + bytes.toString('latin1')).slice(-4096)
      if (text.includes(lastWords)) end('ran')
    })
  })
}
