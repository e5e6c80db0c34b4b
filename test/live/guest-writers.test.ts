/**
 * The writers of guest/writers.d on real servers: private ones, of the user nobody, reached by a socket alone. The server
 * packages are not among those that scripts/setup installs; without them these tests are left out. A copy of the data made while
 * the server's processes stand still is here what the snapshot is in a guest.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'

const writers = join(import.meta.dirname, '..', '..', 'guest', 'writers.d')
const postgresHome = existsSync('/usr/lib/postgresql') ? readdirSync('/usr/lib/postgresql').sort().at(-1) : undefined
const postgresBin = `/usr/lib/postgresql/${postgresHome}/bin`
const idOfNobody = Number(spawnSync('id', ['-u', 'nobody'], { encoding: 'utf8' }).stdout || Number.NaN)
const asNobody = { uid: idOfNobody, gid: idOfNobody, cwd: '/' }

function skipWithout(package_: string, ...programs: string[]): string | false {
  if (process.getuid?.() !== 0) return 'needs root, as a guest writer does'
  if (Number.isNaN(idOfNobody)) return 'there is no user nobody'
  const missing = programs.find((program) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0)
  return missing === undefined ? false : `${missing} is not installed (${package_})`
}

/** One server and the writer that is to bring it to rest. */
abstract class Server {
  readonly directory = mkdtempSync('/var/tmp/umbra-writers-')
  readonly #writer: string
  readonly #running = new Map<string, ChildProcess>()

  constructor(writer: string) {
    this.#writer = writer
    execFileSync('chown', ['nobody', this.directory])
    execFileSync('chmod', ['755', this.directory])
    mkdirSync(join(this.directory, 'state'), { mode: 0o700 })
  }

  abstract settings(): NodeJS.ProcessEnv
  abstract command(data: string): readonly string[]
  /** The client program, for the server on this data directory. */
  abstract client(data: string, statement: string): readonly string[]

  call(verb: string, more: NodeJS.ProcessEnv = {}) {
    const began = performance.now()
    const env = {
      PATH: process.env.PATH,
      UMBRA_WRITER_STATE: join(this.directory, 'state'),
      ...this.settings(),
      ...more,
    }
    // Output goes to a file, as umbra-guest has it: what stays behind must not keep a pipe open.
    const said = join(this.directory, 'said')
    const script = `exec "$0" "$1" >${said} 2>&1`
    const { status } = spawnSync('sh', ['-c', script, join(writers, this.#writer), verb], { env, timeout: 20_000 })
    const why = readFileSync(said, 'utf8').trimEnd().split('\n').at(-1) ?? ''
    return { exit: status, why, tookMs: performance.now() - began }
  }

  does(verb: string, more: NodeJS.ProcessEnv = {}): number {
    const { exit, why, tookMs } = this.call(verb, more)
    assert.deepEqual([exit, why], [0, ''], verb)
    return tookMs
  }

  refuses(verb: string, why: RegExp, more: NodeJS.ProcessEnv = {}) {
    const said = this.call(verb, more)
    assert.equal(said.exit, 1, said.why)
    assert.match(said.why, why)
  }

  traces = () => readdirSync(join(this.directory, 'state'))

  async start(data: string): Promise<void> {
    const [program = '', ...words] = this.command(data)
    const child = spawn(program, words, { ...asNobody, stdio: 'ignore' })
    this.#running.set(data, child)
    for (let tries = 0; tries < 100; tries += 1) {
      if (this.answers('SELECT 1', data)) return
      assert.equal(child.exitCode, null, `${program} ended`)
      await setTimeout(100)
    }
    assert.fail(`${program} does not answer`)
  }

  async stop(data: string): Promise<void> {
    const child = this.#running.get(data)
    this.#running.delete(data)
    if (child === undefined || child.exitCode !== null) return
    const ended = new Promise((resolve) => child.once('exit', resolve))
    for (const one of this.processes(child.pid)) process.kill(one, 'SIGCONT')
    child.kill('SIGINT')
    if (this.#writer === 'mysql') child.kill('SIGTERM')
    await ended
  }

  processes(main = this.#running.get('data')?.pid): number[] {
    const { stdout } = spawnSync('pgrep', ['-P', String(main)], { encoding: 'utf8' })
    return [main, ...stdout.split('\n').filter(Boolean)].map(Number)
  }

  query(statement: string, data = 'data'): string {
    const [program = '', ...words] = this.client(data, statement)
    return execFileSync(program, words, { encoding: 'utf8', timeout: 10_000, stdio: 'pipe' }).trim()
  }

  answers(statement: string, data = 'data'): boolean {
    const [program = '', ...words] = this.client(data, statement)
    return spawnSync(program, words, { timeout: 800, killSignal: 'SIGKILL' }).status === 0
  }

  /** Writes row after row until told to stop. */
  writesOn(statement: string): () => Promise<void> {
    const [program = '', ...words] = this.client('data', statement)
    const loop = spawn('sh', ['-c', 'while "$@" >/dev/null 2>&1; do :; done', 'sh', program, ...words], {
      detached: true,
    })
    const ended = new Promise<void>((resolve) => loop.once('exit', () => resolve()))
    return async () => {
      process.kill(-(loop.pid ?? 0), 'SIGKILL')
      await ended
    }
  }

  copy(name: string): void {
    const standing = this.processes()
    const stoppedBefore = readFileSync(`/proc/${standing[0]}/stat`, 'utf8').split(' ')[2] === 'T'
    if (!stoppedBefore) for (const one of standing) process.kill(one, 'SIGSTOP')
    execFileSync('cp', ['--reflink=auto', '-a', join(this.directory, 'data'), join(this.directory, name)])
    if (!stoppedBefore) for (const one of standing) process.kill(one, 'SIGCONT')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.call('thaw')
    for (const data of [...this.#running.keys()]) await this.stop(data)
    rmSync(this.directory, { recursive: true })
  }
}

class Postgres extends Server {
  constructor() {
    super('postgresql')
    const data = join(this.directory, 'data')
    execFileSync(join(postgresBin, 'initdb'), ['-A', 'trust', '-U', 'postgres', '-N', '-D', data], {
      ...asNobody,
      stdio: 'ignore',
    })
  }
  settings = () => ({ UMBRA_PG_CONF: '/nowhere', UMBRA_PG_USER: 'nobody', PGHOST: this.directory, PGUSER: 'postgres' })
  port = (data: string) => (data === 'data' ? '5432' : '5433')
  command(data: string) {
    const options = ['listen_addresses=', `unix_socket_directories=${this.directory}`, 'shared_buffers=4MB']
    const words = options.flatMap((option) => ['-c', option])
    return [join(postgresBin, 'postgres'), '-D', join(this.directory, data), '-p', this.port(data), ...words]
  }
  client(data: string, statement: string) {
    const where = ['-h', this.directory, '-p', this.port(data), '-U', 'postgres', '-d', 'postgres']
    return [join(postgresBin, 'psql'), '-X', '-q', '-A', '-t', '-w', ...where, '-c', statement]
  }
}

class Mariadb extends Server {
  constructor() {
    super('mysql')
    const where = `--datadir=${join(this.directory, 'data')}`
    const words = ['--no-defaults', '--auth-root-authentication-method=normal', '--skip-test-db', where]
    execFileSync('mariadb-install-db', words, { ...asNobody, stdio: 'ignore' })
    writeFileSync(join(this.directory, 'cnf'), `[client]\nsocket=${join(this.directory, 'data.sock')}\nuser=root\n`)
  }
  settings = () => ({ UMBRA_MYSQL_CNF: join(this.directory, 'cnf'), UMBRA_MYSQL_USER: 'nobody', HOME: '/nonexistent' })
  command(data: string) {
    const socket = `--socket=${join(this.directory, `${data}.sock`)}`
    const small = ['--innodb-buffer-pool-size=8M', '--innodb-log-file-size=8M', '--skip-networking']
    const files = [`--datadir=${join(this.directory, data)}`, `--pid-file=${join(this.directory, `${data}.pid`)}`]
    return ['mariadbd', '--no-defaults', socket, ...files, ...small]
  }
  client(data: string, statement: string) {
    const socket = `--socket=${join(this.directory, `${data}.sock`)}`
    return ['mariadb', '--no-defaults', '-u', 'root', '-N', '-B', socket, '-e', statement]
  }
}

const pause = { UMBRA_PG_PAUSE: 'yes' }
const skipPostgres = skipWithout(
  'postgresql',
  join(postgresBin, 'initdb'),
  join(postgresBin, 'postgres'),
  'psql',
  'pgrep',
)

describe('the guest writer postgresql', { skip: skipPostgres, timeout: 60_000 }, () => {
  let server: Postgres
  before(async () => {
    server = new Postgres()
    await server.start('data')
    server.query('CREATE TABLE log (id serial)')
  })
  after(() => server?.[Symbol.asyncDispose]())
  const row = 'INSERT INTO log DEFAULT VALUES'

  it('makes a checkpoint while a client writes, and holds nothing', async (t) => {
    const position = 'SELECT redo_lsn FROM pg_control_checkpoint()'
    const stopWriting = server.writesOn(row)
    const was = server.query(position)
    await setTimeout(300)
    const tookMs = server.does('freeze')
    t.diagnostic(`freeze ${Math.round(tookMs)} ms`)
    assert.notEqual(server.query(position), was)
    assert.ok(server.answers(row))
    assert.deepEqual(server.traces(), [])
    server.does('thaw')
    await stopWriting()
  })

  it('stops the server where told to, and a copy of then starts with every row committed before', async (t) => {
    const stopWriting = server.writesOn(row)
    await setTimeout(300)
    const committed = Number(server.query('SELECT count(*) FROM log'))
    t.diagnostic(`freeze ${Math.round(server.does('freeze', pause))} ms`)
    assert.ok(!server.answers('SELECT 1'), 'a client waits')
    server.copy('copy')
    t.diagnostic(`thaw ${Math.round(server.does('thaw'))} ms`)
    assert.ok(server.answers(row))
    await stopWriting()
    rmSync(join(server.directory, 'copy', 'postmaster.pid'))
    await server.start('copy')
    assert.ok(Number(server.query('SELECT count(*) FROM log', 'copy')) >= committed)
    await server.stop('copy')
    assert.deepEqual(server.traces(), [])
  })

  it('may be frozen twice and thawed for nothing', () => {
    server.does('thaw')
    server.does('freeze', pause)
    server.does('freeze', pause)
    assert.ok(!server.answers('SELECT 1'))
    server.does('thaw')
    assert.ok(server.answers('SELECT 1'))
    server.does('thaw')
  })

  it('lets the server go on by itself after its limit, and says so at the thaw', async () => {
    server.does('freeze', { ...pause, UMBRA_WRITER_LIMIT: '2' })
    assert.ok(!server.answers('SELECT 1'))
    await setTimeout(2200)
    assert.ok(server.answers(row))
    server.refuses('thaw', /^the server went on before the thaw$/)
    server.does('thaw')
  })

  it('vetoes when the server runs but can not be reached; has nothing to do when it does not run', async () => {
    server.refuses('freeze', /can not be reached: .*No such file/s, { PGPORT: '5999' })
    await server.stop('data')
    server.does('freeze', pause)
    server.does('thaw')
    assert.deepEqual(server.traces(), [])
  })
})

const skipMariadb = skipWithout('mariadb-server', 'mariadbd', 'mariadb', 'mariadb-install-db', 'pgrep')

describe('the guest writer mysql', { skip: skipMariadb, timeout: 60_000 }, () => {
  let server: Mariadb
  before(async () => {
    server = new Mariadb()
    await server.start('data')
    server.query('CREATE DATABASE d; CREATE TABLE d.log (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE=InnoDB')
    server.query('CREATE TABLE d.old (id INT) ENGINE=MyISAM')
  })
  after(() => server?.[Symbol.asyncDispose]())
  const row = 'INSERT INTO d.log VALUES ()'
  const count = 'SELECT COUNT(*) FROM d.log'
  const session = "SELECT id FROM information_schema.processlist WHERE command = 'Sleep'"

  for (const [how, more] of [
    ['BACKUP STAGE', {}],
    ['FLUSH TABLES WITH READ LOCK', { UMBRA_MYSQL_HOLD: 'FLUSH TABLES WITH READ LOCK;' }],
  ] as const) {
    it(`holds writes by ${how}, and a copy of then starts with every row committed before`, async (t) => {
      const stopWriting = server.writesOn(row)
      await setTimeout(300)
      const committed = Number(server.query(count))
      t.diagnostic(`freeze ${Math.round(server.does('freeze', more))} ms`)
      const held = server.query(count)
      for (const write of [row, 'INSERT INTO d.old VALUES (1)', 'CREATE TABLE d.more (id INT)'])
        assert.ok(!server.answers(write), write)
      assert.equal(server.query(count), held)
      const name = `copy-${how.split(' ')[0]}`
      server.copy(name)
      t.diagnostic(`thaw ${Math.round(server.does('thaw'))} ms`)
      await setTimeout(100)
      assert.ok(server.answers(row))
      await stopWriting()
      await server.start(name)
      assert.ok(Number(held) >= committed)
      assert.equal(server.query(count, name), held)
      await server.stop(name)
      server.query('DROP TABLE IF EXISTS d.more')
      assert.deepEqual(server.traces(), [])
    })
  }

  it('may be frozen twice and thawed for nothing', () => {
    server.does('thaw')
    server.does('freeze')
    server.does('freeze')
    assert.ok(!server.answers(row))
    server.does('thaw')
    assert.ok(server.answers(row))
    server.does('thaw')
  })

  it('lets writes go on by itself after its limit, and says so at the thaw', async () => {
    server.does('freeze', { UMBRA_WRITER_LIMIT: '2' })
    assert.ok(!server.answers(row))
    await setTimeout(2200)
    assert.ok(server.answers(row))
    server.refuses('thaw', /^the session that held the writes was lost before the thaw$/)
    server.does('thaw')
  })

  it('notices at the thaw that its session was ended', () => {
    server.does('freeze')
    server.query(`KILL ${server.query(session)}`)
    assert.ok(server.answers(row))
    server.refuses('thaw', /was lost before the thaw/)
  })

  it('vetoes when the server runs but can not be reached; has nothing to do when it does not run', async () => {
    const cnf = join(server.directory, 'wrong')
    writeFileSync(cnf, '[client]\nsocket=/nonexistent/socket\n')
    server.refuses('freeze', /can not be reached: ERROR 2002/, { UMBRA_MYSQL_CNF: cnf })
    await server.stop('data')
    server.does('freeze')
    server.does('thaw')
    assert.deepEqual(server.traces(), [])
  })
})
