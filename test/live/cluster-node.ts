/**
 * A failover cluster of one node, for real: corosync and pacemaker started by hand, without systemd, with their
 * configuration and logs in a directory of the test's. Pacemaker keeps its state where it always does, so that there can
 * be one such cluster on a host, and none where the host has its own.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { chmod, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from './stage.ts'

const needed = ['corosync', 'pacemakerd', 'crm_mon', 'crm_resource', 'cibadmin']
const isMissing = (program: string) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0
const agent = '/usr/lib/ocf/resource.d/heartbeat/VirtualDomain'
const stateDirectory = '/var/lib/pacemaker'
/** Pids of the daemons that a run of ours started; on a file system that a restart of the host clears. */
const markPath = '/run/umbra/test-cluster-node.pids'

export const nodeName = 'umbra-test-node'

/** Why there can be no cluster here; false when there can. */
export const skipCluster = ((): string | false => {
  if (process.getuid?.() !== 0) return 'not here: root'
  const missing = needed.filter(isMissing)
  if (missing.length > 0 || !existsSync(agent)) return `not here: ${[...missing, agent].join(', ')}`
  if (existsSync(markPath)) return false
  const own = readdirSync(join(stateDirectory, 'cib')).length > 0 || spawnSync('crm_mon', ['--one-shot']).status === 0
  return own && 'this host has a cluster of its own'
})()

export interface ClusterNode extends AsyncDisposable {
  readonly log: string
}

const corosyncConf = (directory: string) => `totem {
  version: 2
  cluster_name: umbra-test
  transport: knet
  crypto_cipher: none
  crypto_hash: none
}
logging {
  to_logfile: yes
  logfile: ${directory}/corosync.log
  to_syslog: no
  to_stderr: no
}
system {
  state_dir: ${directory}
}
quorum {
  provider: corosync_votequorum
  expected_votes: 1
}
nodelist {
  node {
    name: ${nodeName}
    nodeid: 1
    ring0_addr: 127.0.0.1
  }
}
`

/** Without the wait for a coordinator of the cluster, which takes 20 s. */
const beginning = `<cib crm_feature_set="3.0.0" validate-with="pacemaker-3.0" epoch="1" num_updates="0" admin_epoch="0">
  <configuration>
    <crm_config>
      <cluster_property_set id="umbra-test-options">
        <nvpair id="umbra-test-stonith" name="stonith-enabled" value="false"/>
        <nvpair id="umbra-test-quorum" name="no-quorum-policy" value="ignore"/>
        <nvpair id="umbra-test-dc" name="dc-deadtime" value="1s"/>
      </cluster_property_set>
    </crm_config>
    <nodes/>
    <resources/>
    <constraints/>
  </configuration>
  <status/>
</cib>
`

/** `directory` is made. Disposal ends the cluster and leaves its VMs as they are. */
export async function beginClusterNode(directory: string): Promise<ClusterNode> {
  await endDaemons()
  await using stack = new AsyncDisposableStack()
  stack.defer(endDaemons)
  await mkdir(directory, { recursive: true })
  await mkdir('/run/umbra', { recursive: true })
  await writeFile(markPath, '')
  const configuration = join(directory, 'corosync.conf')
  await writeFile(configuration, corosyncConf(directory))
  const cib = join(stateDirectory, 'cib', 'cib.xml')
  await writeFile(cib, beginning)
  execFileSync('chown', ['hacluster:haclient', cib])
  await chmod(cib, 0o600)
  const log = join(directory, 'pacemaker.log')
  const pids: number[] = []
  const start = async (program: string, args: string[], environment: Record<string, string> = {}) => {
    const out = openSync(join(directory, `${program}.out`), 'w')
    const options = { detached: true, env: { ...process.env, ...environment } }
    const child = spawn(program, args, { ...options, stdio: ['ignore', out, out] })
    child.unref()
    pids.push(child.pid ?? 0)
    await writeFile(markPath, pids.join('\n'))
  }
  await start('corosync', ['-c', configuration, '-f'])
  const ready = () => spawnSync('corosync-cfgtool', ['-s'], { timeout: 5_000 }).status === 0
  await eventually('corosync', async () => (ready() ? true : undefined), 30_000)
  const quiet = { PCMK_logfacility: 'none', HA_logfacility: 'none', PCMK_fail_fast: 'no' }
  await start('pacemakerd', ['-f'], { ...quiet, PCMK_logfile: log, PCMK_node_name: nodeName })
  await eventually('the node', async () => (/<node [^>]*online="true"/.test(status()) ? true : undefined), 60_000)
  const owned = stack.move()
  return { log, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** What crm_mon tells; empty where no cluster runs. */
export const status = (): string => {
  const { stdout } = spawnSync('crm_mon', ['--one-shot', '--inactive', '--output-as=xml'], {
    encoding: 'utf8',
    timeout: 10_000,
  })
  return stdout ?? ''
}

export function crm(program: 'crm_resource' | 'cibadmin' | 'crm_attribute', ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 300_000 })
}

/** Newest first: pacemaker before corosync. Maintenance: it is not to stop its VMs, which takes their time. */
async function endDaemons(): Promise<void> {
  if (!existsSync(markPath)) return
  spawnSync('crm_attribute', ['--name', 'maintenance-mode', '--update', 'true'], { stdio: 'ignore', timeout: 10_000 })
  const pids = (await readFile(markPath, 'utf8')).split('\n').map(Number)
  for (const pid of pids.filter((one) => one > 1 && isDaemon(one)).reverse()) {
    const group = await processesBelow(pid)
    process.kill(pid, 'SIGTERM')
    const gone = async () => (isDaemon(pid) ? undefined : true)
    await eventually('the end of a daemon', gone, 30_000).catch(() => process.kill(pid, 'SIGKILL'))
    for (const one of group.filter(isDaemon)) process.kill(one, 'SIGKILL')
  }
  for (const part of ['cib', 'pengine']) {
    for (const name of await readdir(join(stateDirectory, part))) await rm(join(stateDirectory, part, name))
  }
  // What the resource agent remembers of the tests' VMs.
  const remembered = '/run/resource-agents'
  for (const name of await readdir(remembered).catch(() => []))
    if (name.startsWith('VirtualDomain-umbra-')) await rm(join(remembered, name))
  await rm(markPath)
}

function isDaemon(pid: number): boolean {
  const path = `/proc/${pid}/cmdline`
  if (!existsSync(path)) return false
  return /^(\S*\/)?(corosync|pacemaker[a-z-]*)\0/.test(readFileSync(path, 'utf8'))
}

async function processesBelow(parent: number): Promise<number[]> {
  const children = await readFile(`/proc/${parent}/task/${parent}/children`, 'utf8').catch(() => '')
  return children
    .split(' ')
    .map(Number)
    .filter((pid) => pid > 1)
}
