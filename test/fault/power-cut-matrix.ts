/**
 * The loops of power-cut.test.ts: a scenario is run once for each of its operations, with a fault there, and judged. They run
 * in a thread of their own (power-cut-thread.ts), because the test runner follows every promise of the main thread.
 */
import assert from 'node:assert/strict'
import { Failure, primaryError } from '../../src/base/failure.ts'
import { judge, type PacksLeft } from './power-cut-judge.ts'
import { copyOfLedger, PowerCutProcess, type Scenario, type Step, scenarios } from './power-cut-scenario.ts'
import { type Effect, type FileFault, UnsyncedFiles, type UnsyncedOptions } from './unsynced-files.ts'
import {
  anySubset,
  everything,
  namesOnly,
  namesUpToSome,
  nothingUnsynced,
  type Survival,
} from './unsynced-files-tree.ts'

/** The harshest, the names ahead of the bytes, and any subset; different in each case, the same in each run. */
const survivalsAt = (at: number): Survival[] => {
  const ahead = [...namesOnly, namesUpToSome(at)]
  return [nothingUnsynced, ...ahead.slice(at % ahead.length).slice(0, 1), anySubset(at)]
}

/** A scenario up to the moment from which something may fail. */
interface Beginning {
  /** A process that is to meet a fault. */
  readonly begin: (fault: UnsyncedOptions) => PowerCutProcess
  /** What each of its operations does to the disk, as seen once without a fault. */
  readonly effects: readonly Effect[]
}

async function prepare({ before, steps }: Scenario, disk: UnsyncedOptions = {}): Promise<Beginning> {
  const first = new PowerCutProcess(new UnsyncedFiles(disk))
  for (const step of before) await step.run(first)
  await first.close()
  const begin = (fault: UnsyncedOptions) =>
    new PowerCutProcess(first.files.afterPowerCut(everything).nextProcess(fault), copyOfLedger(first.ledger))
  const whole = begin({})
  await run(steps, whole)
  return { begin, effects: whole.files.operations.map(({ effect }) => effect) }
}

/** Until one step fails. */
async function run(steps: readonly Step[], process: PowerCutProcess): Promise<void> {
  try {
    for (const step of steps) await step.run(process)
  } catch (error) {
    if (!process.files.hit) throw error
  }
  await process.close()
}

/** Only these make a difference: a power cut after something was read is one after what was done before. */
const matters: Readonly<Record<FileFault, readonly Effect[]>> = {
  'power cut': ['changes', 'takes space'],
  killed: ['changes', 'takes space'],
  EIO: ['reads', 'changes', 'takes space'],
  'EIO after the deed': ['changes', 'takes space'],
  ENOSPC: ['takes space'],
}

/** One `check` for each operation after the beginning; a failing one is told by its number and its name. */
async function atEveryOperation(
  fault: FileFault,
  { begin, effects }: Beginning,
  check: (process: PowerCutProcess, at: number) => Promise<void>,
): Promise<void> {
  assert.ok(effects.length > 5, `${effects.length} operations`)
  for (const [index, effect] of effects.entries()) {
    if (!matters[fault].includes(effect)) continue
    const at = index + 1
    const process = begin({ fault, at })
    try {
      await check(process, at)
      assert.ok(process.files.hit, 'it has not happened')
    } catch (error) {
      throw new Error(`${fault} at operation ${at}, ${process.files.operations[index]?.call}`, { cause: error })
    }
  }
}

async function judgeAll(process: PowerCutProcess, scenario: Scenario, survivals: readonly Survival[]): Promise<void> {
  for (const [index, survival] of survivals.entries()) {
    const left = leftBy(scenario, index === 0)
    await judge(process.files.afterPowerCut(survival), process.ledger, left).catch((error: unknown) => {
      throw new Error(`what survived: ${survival.name}`, { cause: error })
    })
  }
}

const leftBy = ({ collects }: Scenario, mayCollect: boolean): PacksLeft =>
  collects !== true ? 'none of drafts' : mayCollect ? 'none after a collection' : 'any'

/**
 * A directory that can not be made is not full: it is told as one that can not be used. What can not be read may be what a
 * collection has to know.
 */
const codesOf = (fault: FileFault) =>
  fault === 'ENOSPC' ? ['REPOSITORY_FULL', 'REPOSITORY_IO'] : ['REPOSITORY_IO', 'COLLECT_UNSURE']

/** A step that failed with a code works when the fault is gone. */
async function runInSpiteOf(fault: FileFault, step: Step, process: PowerCutProcess): Promise<void> {
  try {
    await step.run(process)
  } catch (error) {
    const first = primaryError(error)
    assert.ok(first instanceof Failure, String(first))
    assert.ok(codesOf(fault).includes(first.code), first.code)
    process.files.freeSpace()
    await step.run(process)
  }
}

type Matrix = (scenario: Scenario) => Promise<void>

const survivesFailure =
  (fault: FileFault): Matrix =>
  async (scenario) => {
    await atEveryOperation(fault, await prepare(scenario), async (process) => {
      for (const step of scenario.steps) await runInSpiteOf(fault, step, process)
      process.files.freeSpace()
      await process.close()
      await judge(process.files.nextProcess(), process.ledger, leftBy(scenario, false))
    })
  }

export const withoutHardLinks = 'survives a power cut after any operation where there are no hard links'

/** By what they say of a scenario. */
export const matrices: Readonly<Record<string, Matrix>> = {
  'survives a power cut after any operation, whatever of the unsynced is there': async (scenario) => {
    await atEveryOperation('power cut', await prepare(scenario), async (process, at) => {
      await run(scenario.steps, process)
      await judgeAll(process, scenario, survivalsAt(at))
    })
  },
  [withoutHardLinks]: async (scenario) => {
    await atEveryOperation('power cut', await prepare(scenario, { hardLinks: false }), async (process, at) => {
      await run(scenario.steps, process)
      await judgeAll(process, scenario, [at % 2 === 0 ? nothingUnsynced : anySubset(at)])
    })
  },
  'survives a kill after any operation, another backup, and then a power cut': async (scenario) => {
    await atEveryOperation('killed', await prepare(scenario), async (process) => {
      await run(scenario.steps, process)
      await judge(process.files.nextProcess(), process.ledger, leftBy(scenario, true))
    })
  },
  'tells EIO at any operation with a code, and what failed works again': survivesFailure('EIO'),
  'tells EIO after the deed with a code, and what failed works again': survivesFailure('EIO after the deed'),
  'tells ENOSPC at any operation with a code, and what failed works again': survivesFailure('ENOSPC'),
  'moves all bytes where a read or a write moves few at a time': async (scenario) => {
    const { begin } = await prepare(scenario, { bytesAtOnce: 1021 })
    const process = begin({})
    for (const step of scenario.steps) await step.run(process)
    await process.close()
    await judge(process.files.nextProcess(), process.ledger, leftBy(scenario, true))
  },
}

/** Rejects with the case that failed. */
export async function runMatrix(scenarioName: string, matrixName: string): Promise<void> {
  const scenario = scenarios.find(({ name }) => name === scenarioName)
  const matrix = matrices[matrixName]
  assert.ok(scenario !== undefined && matrix !== undefined)
  await matrix(scenario)
}
