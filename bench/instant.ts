/**
 * bench/instant: from the command `umbra instant` to the answer of the guest's agent, against the start of the same VM from
 * its local disks, in turns in one run. Run it by hand as root on a quiet machine: `bench/instant [ROUNDS]`. Wanted: at most
 * 1.5 times.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { createDisks } from '../sample-guest/sample-guest.ts'
import { livingProcess } from '../src/base/pid-file.ts'
import { placesOf, readRecord } from '../src/requester/instant-record.ts'
import { beginStage, boot, defineVm, type Stage, vmDirectory } from '../test/live/stage.ts'
import { backUp } from '../test/live/stage-session.ts'
import { runUmbra } from '../test/umbra-process.ts'

type Taken = 'local' | 'instant' | 'command' | 'server' | 'gate'

const rounds = Number(process.argv[2] ?? 5)
const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`

/** What the process has used of the processors since its start: proc(5), utime and stime in ticks of 10 ms. */
function cpuMs(pid: number | undefined): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\)/s, '').trim().split(' ')
  return 10 * (Number(fields[11]) + Number(fields[12]))
}

/** Asks again at once when it does not answer yet: the agent is what is waited for, not the asking. */
async function answers({ hypervisor }: Stage, uuid: string): Promise<void> {
  for (;;) {
    if ((await hypervisor.vm(uuid)).agent === 'connected') {
      try {
        return await hypervisor.guest(uuid).ping()
      } catch {
        // not yet
      }
    }
    await sleep(20)
  }
}

await using stage = await beginStage('bench-instant')
const environment = {
  UMBRA_CONNECT: stage.libvirtd.uri,
  UMBRA_STATE: stage.settings.stateDirectory,
  UMBRA_REPOSITORY: stage.repository.location,
  HOME: stage.directory,
}
async function umbra(...words: string[]): Promise<void> {
  const { exitCode, stdout, stderr } = await runUmbra(words, environment)
  if (exitCode !== 0) throw new Error(`umbra ${words.join(' ')}: ${stdout}${stderr}`)
}

const disks = await createDisks(stage.images, vmDirectory(stage, 'local'), 'qcow2')
const local = await boot(stage, await defineVm(stage, 'local', disks, { rate: 0 }))
await backUp(stage, ['local'])
await stage.hypervisor.turnOff(local.uuid)
const took = { local: [], instant: [], command: [], server: [], gate: [] } as Record<Taken, number[]>
for (let round = 0; round < rounds; round++) {
  let beganMs = performance.now()
  await stage.hypervisor.start(local.uuid)
  await answers(stage, local.uuid)
  took.local.push(performance.now() - beganMs)
  await stage.hypervisor.turnOff(local.uuid)

  beganMs = performance.now()
  await umbra('instant', 'latest', '--as', 'instant')
  took.command.push(performance.now() - beganMs)
  const { uuid } = await stage.hypervisor.vm('instant')
  await answers(stage, uuid)
  took.instant.push(performance.now() - beganMs)
  const places = placesOf(stage.settings.stateDirectory, await readRecord(stage.settings.stateDirectory, 'instant'))
  took.server.push(cpuMs(await livingProcess(places.serverPidFile)))
  took.gate.push(cpuMs(await livingProcess(places.gatePidFile)))
  await umbra('instant', 'drop', 'instant')
}
console.log(
  `rounds ${rounds}, medians: from local disks ${seconds(median(took.local))}, instant ${seconds(median(took.instant))}`,
)
console.log(`of which until the command had ended ${seconds(median(took.command))}`)
console.log(
  `processor time of the disk server ${seconds(median(took.server))}, of the gate ${seconds(median(took.gate))}`,
)
console.log(`ratio ${(median(took.instant) / median(took.local)).toFixed(2)} (wanted: at most 1.5)`)
