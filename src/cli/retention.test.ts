/**
 * umbra retention, pin, unpin and points as one sees them: the real program on a repository of points of made-up times.
 */
import assert from 'node:assert/strict'
import { appendFile, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { runUmbra, type UmbraEnd } from '../../test/umbra-process.ts'
import { objectKeys } from '../repository/format.ts'
import { plainSeal } from '../repository/keys/seal.ts'
import { encodeManifest } from '../repository/recovery-point.ts'
import { createRepository } from '../repository/repository.ts'
import { openLocalBackend } from '../repository/storage/local-backend.ts'

const ids = {
  old: '20260101T120000Z-aaaa',
  monday: '20260302T080000Z-bbbb',
  mondayLater: '20260302T180000Z-cccc',
  tuesday: '20260303T080000Z-dddd',
}

interface Place extends AsyncDisposable {
  readonly points: string
  umbra(...words: string[]): Promise<UmbraEnd>
  configure(text: string): Promise<void>
}

/** Four points of web01, the newest of them of other VMs. */
async function openPlace(newest: readonly string[] = ['web01', 'db01']): Promise<Place> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-cli-retention-'))
  const location = join(directory, 'backup')
  const configuration = join(directory, 'umbra.yaml')
  await writeFile(configuration, '')
  {
    await using repository = await createRepository(location, { encryption: 'none' })
    await using backend = openLocalBackend(location)
    for (const id of Object.values(ids)) {
      const createdAt = id.replace(/^(....)(..)(..)T(..)(..)(..)Z.*/, '$1-$2-$3T$4:$5:$6Z')
      const names = id === ids.tuesday ? newest : ['web01']
      const content = { vms: names.map((name) => ({ name, uuid: `uuid-${name}`, disks: [] })) }
      const manifest = { id, repositoryId: repository.id, createdAt, content, streams: [], documents: [] }
      await backend.put(objectKeys.point(id), [encodeManifest(plainSeal, manifest)])
    }
  }
  const environment = { UMBRA_STATE: join(directory, 'state'), UMBRA_REPOSITORY: location, HOME: directory, TZ: 'UTC' }
  return {
    points: join(location, 'points'),
    umbra: (...words) => runUmbra(words, { ...environment, UMBRA_CONFIG: configuration }),
    configure: (text) => writeFile(configuration, text),
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true }),
  }
}

async function left({ points }: Place): Promise<string[]> {
  return (await readdir(points)).map((name) => name.replace('.json', '')).sort()
}

interface Told {
  readonly id: string
  readonly keep: boolean
  readonly reasons: readonly string[]
  readonly became?: string
}

const toldIn = ({ stdout }: UmbraEnd): Told[] => (JSON.parse(stdout) as { points: Told[] }).points

describe('umbra retention', { concurrency: 2 }, () => {
  it('tells its plan as a table and with --dry-run changes nothing; then it removes just that', async () => {
    await using place = await openPlace()
    const dry = await place.umbra('retention', '--keep-daily', '2', '--dry-run')
    assert.equal(dry.exitCode, 0, dry.stderr)
    const lines = dry.stdout.split('\n').map((line) => line.trimEnd().replace(/ {2,}/g, '  '))
    assert.deepEqual(lines, [
      'RECOVERY POINT  TIME  VMS  WHY',
      `${ids.old}  2026-01-01 12:00:00  web01  remove  web01: 2026-01-01 is beyond daily 2`,
      `${ids.monday}  2026-03-02 08:00:00  web01  remove  web01: not the newest of 2026-03-02`,
      `${ids.mondayLater}  2026-03-02 18:00:00  web01  keep  web01: the newest of 2026-03-02 (daily 2 of 2)`,
      `${ids.tuesday}  2026-03-03 08:00:00  web01, db01  keep  web01: its newest, the newest of 2026-03-03 (daily 1 of 2); db01: its only one, the newest of 2026-03-03 (daily 1 of 2)`,
      '',
      '2 of 4 recovery points would be removed',
      'nothing was changed',
      '',
    ])
    assert.equal((await left(place)).length, 4)
    const done = await place.umbra('retention', '--keep-daily', '2')
    assert.equal(done.exitCode, 0)
    assert.match(done.stdout, /\n2 of 4 recovery points were removed\ntheir space comes back with umbra collect\n$/)
    assert.deepEqual(await left(place), [ids.mondayLater, ids.tuesday])
  })

  it('tells three VMs of a large set, and three reasons', async () => {
    await using place = await openPlace(['a', 'b', 'c', 'd', 'e'])
    const { stdout } = await place.umbra('retention', '--keep-last', '1', '--dry-run')
    const reason = (name: string) => `${name}: its only one, last 1 of 1`
    assert.match(stdout.replace(/ {2,}/g, '  '), / {2}a, b, c, 2 more {2}keep {2}a: its only one, last 1 of 1; b: /)
    assert.ok(stdout.includes(`${reason('c')}; 2 more\n`), stdout)
  })

  it('takes the rules of the configuration unless the options have some', async () => {
    await using place = await openPlace()
    await place.configure("retention:\n- { vms: ['db*'], keepLast: 1 }\n- { keepLast: 3 }\n")
    assert.equal(toldIn(await place.umbra('retention', '--dry-run', '--json')).filter(({ keep }) => keep).length, 3)
    const said = toldIn(await place.umbra('retention', '--keep-last', '1', '--dry-run', '--json'))
    assert.equal(said.filter(({ keep }) => keep).length, 1)
    const onlyDb = toldIn(await place.umbra('retention', '--vm', 'db*', '--dry-run', '--json'))
    assert.ok(onlyDb.every(({ keep }) => keep))
    assert.deepEqual(onlyDb[0]?.reasons, ['web01: not asked for'])
  })

  it('removes all of a VM only with --allow-none', async () => {
    await using place = await openPlace()
    const refused = await place.umbra('retention', '--keep-last', '0')
    assert.equal(refused.exitCode, 2)
    assert.match(refused.stderr, /keeps nothing; if that is meant, say --allow-none/)
    assert.equal((await place.umbra('retention', '--keep-within', '1h')).exitCode, 0)
    assert.deepEqual(await left(place), [ids.tuesday])
    assert.equal((await place.umbra('retention', '--keep-last', '0', '--allow-none')).exitCode, 0)
    assert.deepEqual(await left(place), [])
  })

  it('removes nothing that is pinned or damaged, and says so', async () => {
    await using place = await openPlace()
    assert.equal((await place.umbra('pin', 'bbbb', '--note', 'before the migration')).exitCode, 0)
    await appendFile(join(place.points, `${ids.old}.json`), 'rust')
    const told = toldIn(await place.umbra('retention', '--keep-last', '1', '--json'))
    assert.deepEqual(
      told.map(({ keep, became, reasons }) => [keep, became, reasons[0]]),
      [
        [true, 'kept', 'can not be read: its digest does not match'],
        [true, 'kept', 'pinned: before the migration'],
        [false, 'removed', 'web01: not among the last 1'],
        [true, 'kept', 'web01: its newest, last 1 of 1'],
      ],
    )
    assert.deepEqual(await left(place), [ids.old, ids.monday, ids.tuesday])
  })

  it('refuses what says nothing, or nothing that can be meant', async () => {
    await using place = await openPlace()
    const refusals: [string[], RegExp][] = [
      [[], /nothing says what to keep: use --keep-last, .* or retention: in the configuration file/],
      [['--keep-daily', '-1'], /from 0 to 100000/],
      [['--keep-within', '2months'], /a number and h, d or w, as in 36h/],
      [['--keep-last', '1', '--vm', 'wbe*'], /there is no VM wbe\* in any recovery point; there are: db01, web01/],
    ]
    for (const [words, message] of refusals) {
      const end = await place.umbra('retention', ...words)
      assert.ok(end.exitCode === 1 || end.exitCode === 2)
      assert.match(end.stderr, message)
    }
    assert.equal((await left(place)).length, 4)
  })
})

describe('umbra pin', { concurrency: 2 }, () => {
  it('is told by points, once, until unpin', async () => {
    await using place = await openPlace()
    const pinned = await place.umbra('pin', 'latest', '--note', 'audit\n2026')
    assert.equal(pinned.stdout, `${ids.tuesday} is pinned: audit 2026\n`)
    assert.match((await place.umbra('points')).stdout, /web01 \(\?\), db01 \(\?\); pinned: audit 2026\n/)
    const again = await place.umbra('pin', 'dddd', '--note', 'audit 2026')
    assert.equal(again.stdout, `${ids.tuesday} was pinned already: audit 2026\n`)
    const other = await place.umbra('pin', 'dddd', '--note', 'another')
    assert.equal(other.exitCode, 2)
    assert.match(other.stderr, /is pinned already: audit 2026; umbra unpin it first/)
    const unpinned = await place.umbra('unpin', ids.tuesday)
    assert.equal(unpinned.stdout, `${ids.tuesday} is not pinned any more; it was: audit 2026\n`)
    assert.equal((await place.umbra('unpin', 'dddd')).stdout, `${ids.tuesday} was not pinned\n`)
    assert.doesNotMatch((await place.umbra('points')).stdout, /pinned/)
  })

  it('needs a note, and a point that is there', async () => {
    await using place = await openPlace()
    assert.match((await place.umbra('pin', 'dddd')).stderr, /required option '--note <text>' not specified/)
    assert.match((await place.umbra('pin', 'dddd', '--note', ' ')).stderr, /a line of 1 to 500 characters/)
    assert.match((await place.umbra('pin', 'zzzz', '--note', 'x')).stderr, /there is no recovery point zzzz/)
  })
})
