/**
 * An application of the host that keeps files in a directory, with the hook that brings it to rest: while the file `frozen`
 * stands beside its directory it does not write. A hook can be told to fail or to hang.
 */
import { access, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import type { HostDirectory } from '../../src/files/host-directory.ts'

const hookText = `#!/bin/sh
base=$(dirname "$0")
echo "$1" >> "$base/calls"
case $1 in
freeze) : > "$base/frozen" ;;
thaw) rm -f "$base/frozen" ;;
esac
case $(cat "$base/trouble" 2>/dev/null) in
"$1 fails") echo "the ledger is being closed" >&2; exit 3 ;;
"$1 hangs") sleep 300 & echo $! > "$base/calls.pid"; wait ;;
esac
`

export class HostApplication implements AsyncDisposable {
  readonly base: string
  readonly directory: string
  readonly settings: HostDirectory

  private constructor(base: string, name: string) {
    this.base = base
    this.directory = join(base, name)
    this.settings = { name, directory: this.directory, hook: join(base, 'hook'), freezeMs: 5_000 }
  }

  /** Two files, as of an application that has been at work. */
  static async begin(name = 'ledger'): Promise<HostApplication> {
    const application = new HostApplication(await mkdtemp(join(tmpdir(), 'umbra-application-')), name)
    await mkdir(application.directory)
    await writeFile(application.settings.hook, hookText, { mode: 0o755 })
    await application.write('accounts', 'balance 10')
    await application.write('journal', 'entry 1')
    return application
  }

  async write(name: string, text: string): Promise<void> {
    if (await this.frozen()) throw new Error(`${basename(this.directory)} is frozen`)
    await writeFile(join(this.directory, name), text)
  }

  frozen(): Promise<boolean> {
    return exists(join(this.base, 'frozen'))
  }

  /** What the hook was called with, in order. */
  async calls(): Promise<string[]> {
    return (await readFile(join(this.base, 'calls'), 'utf8').catch(() => '')).split('\n').filter(Boolean)
  }

  /** The program that a hook which hangs waits for. */
  async hangingPid(): Promise<number> {
    return Number(await readFile(join(this.base, 'calls.pid'), 'utf8'))
  }

  /** From now on; `freeze fails` and `thaw fails` do their work all the same, as the worst hooks do. */
  async trouble(what: 'freeze fails' | 'freeze hangs' | 'thaw fails' | 'none'): Promise<void> {
    await writeFile(join(this.base, 'trouble'), what)
  }

  /** Every file with its text, whether it is frozen, and what lies beside: what a test compares before and after. */
  async state(): Promise<Record<string, string>> {
    const own = ['calls', 'calls.pid', 'hook', 'trouble', basename(this.directory)]
    const beside = (await readdir(this.base)).filter((name) => !own.includes(name)).toSorted()
    return { ...(await filesIn(this.directory)), ...Object.fromEntries(beside.map((name) => [`../${name}`, ''])) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.base, { recursive: true })
  }
}

export async function filesIn(directory: string): Promise<Record<string, string>> {
  const entries: [string, string][] = []
  for (const name of (await readdir(directory)).toSorted()) {
    entries.push([name, await readFile(join(directory, name), 'utf8')])
  }
  return Object.fromEntries(entries)
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
