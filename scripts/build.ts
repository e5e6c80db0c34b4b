/**
 * scripts/build.ts [DIRECTORY]: the package that is installed (dist by default; `npm install -g --install-links ./dist`): Umbra as
 * JavaScript, in files that several modules share. Node.js runs no TypeScript out of node_modules, and loads a few files in
 * half the time of four hundred. Out of a checkout bin/umbra runs the source.
 */
import { cp, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { ownPrograms } from '../src/base/own-programs.ts'

const project = fileURLToPath(new URL('..', import.meta.url))
const target = path.resolve(process.argv[2] ?? path.join(project, 'dist'))

await rm(target, { recursive: true, force: true })
await build({
  entryPoints: Object.values(ownPrograms).map((program) => path.join(project, 'src', program)),
  outdir: path.join(target, 'lib'),
  entryNames: '[name]',
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node24',
  external: ['@napi-rs/blake-hash'], // machine code, found beside its own package
  // Packages written for require() find it.
  banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
})
for (const name of ['bin', 'guest', 'helper-vm', 'scripts/debian-parts.sh', 'LICENSE', 'README.md']) {
  await cp(path.join(project, name), path.join(target, name), { recursive: true })
}
const { scripts, devDependencies, ...manifest } = JSON.parse(await readFile(path.join(project, 'package.json'), 'utf8'))
await writeFile(path.join(target, 'package.json'), `${JSON.stringify(manifest, undefined, 2)}\n`)
