/**
 * Umbra as one uses it: built and installed, below a node_modules.
 */
import { execFileSync } from 'node:child_process'
import { mkdir, readdir, rm, symlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const project = dirname(dirname(fileURLToPath(import.meta.url)))

/** Installs it in `directory` and answers its command. */
export async function installUmbra(directory: string): Promise<string> {
  const modules = join(directory, 'installed', 'node_modules')
  await rm(modules, { recursive: true, force: true })
  await mkdir(modules, { recursive: true })
  for (const name of await readdir(join(project, 'node_modules'))) {
    await symlink(join(project, 'node_modules', name), join(modules, name))
  }
  execFileSync(process.execPath, [join(project, 'scripts/build.ts'), join(modules, 'umbra')])
  return join(modules, 'umbra/bin/umbra')
}
