/**
 * Networks that VMs can be connected to: libvirt's own (API reference, module libvirt-network; "Network XML format")
 * and the bridges of the host (/sys/class/net, kernel documentation sysfs-class-net).
 */
import { access, readdir, readFile } from 'node:fs/promises'
import { failure } from '../errors.ts'
import type { NetworkFacts } from '../vm/hypervisor.ts'
import type { LibvirtConnection } from './connection.ts'
import { libvirtCode } from './libvirt-errors.ts'
import { libvirtCodes, procedures } from './protocol.ts'
import { type XdrReader, XdrWriter } from './rpc-wire.ts'
import { child, escapeXml, parseXml } from './xml-dom.ts'

interface Network {
  readonly name: string
  readonly uuid: Buffer
}

const interfaceIsUp = 1

const readNetwork = (reader: XdrReader): Network => ({ name: reader.string(), uuid: reader.fixed(16) })
const asArgument = ({ name, uuid }: Network): XdrWriter => new XdrWriter().string(name).fixed(uuid)

export async function networks(connection: LibvirtConnection): Promise<readonly NetworkFacts[]> {
  const answer = await connection.call(procedures.connectListAllNetworks, new XdrWriter().i32(1).u32(0))
  const own = answer.list(20, readNetwork)
  const described = own.map(async (network): Promise<NetworkFacts> => {
    const active = (await connection.call(procedures.networkIsActive, asArgument(network))).i32() === 1
    return { name: network.name, kind: 'network', active }
  })
  return [...(await Promise.all(described)), ...(await bridges())]
}

async function bridges(root = '/sys/class/net'): Promise<NetworkFacts[]> {
  const found: NetworkFacts[] = []
  for (const name of (await readdir(root).catch(() => [])).sort()) {
    const isBridge = await access(`${root}/${name}/bridge`).then(
      () => true,
      () => false,
    )
    if (!isBridge) continue
    const flags = Number(await readFile(`${root}/${name}/flags`, 'utf8').catch(() => '0'))
    found.push({ name, kind: 'bridge', active: (flags & interfaceIsUp) !== 0 })
  }
  return found
}

async function lookup(connection: LibvirtConnection, name: string): Promise<Network | undefined> {
  try {
    return readNetwork(await connection.call(procedures.networkLookupByName, new XdrWriter().string(name)))
  } catch (error) {
    if (libvirtCode(error) === libvirtCodes.noNetwork) return undefined
    throw error
  }
}

/** libvirt chooses the bridge's name. Started with the host, because VMs connected to it cannot start without it. */
export async function ensureIsolatedNetwork(connection: LibvirtConnection, name: string): Promise<void> {
  const network = (await lookup(connection, name)) ?? (await defineIsolated(connection, name))
  await refuseUplink(connection, network)
  const isActive = async () => (await connection.call(procedures.networkIsActive, asArgument(network))).i32() === 1
  if (!(await isActive())) {
    try {
      await connection.call(procedures.networkCreate, asArgument(network))
    } catch (error) {
      if (!(await isActive())) throw error
    }
  }
  await connection.call(procedures.networkSetAutostart, asArgument(network).i32(1))
}

/** Made, not defined: it is gone when it is stopped, or the host is. */
export async function createIsolatedNetwork(
  connection: LibvirtConnection,
  name: string,
  subnet: string | undefined,
): Promise<void> {
  const addresses =
    subnet === undefined
      ? ''
      : `<ip address='${escapeXml(subnet)}.1' netmask='255.255.255.0'>` +
        `<dhcp><range start='${escapeXml(subnet)}.10' end='${escapeXml(subnet)}.250'/></dhcp></ip>`
  // Without a name server: what guests ask of one would go out through the host's.
  const xml = `<network><name>${escapeXml(name)}</name><dns enable='no'/>${addresses}</network>`
  await connection.call(procedures.networkCreateXml, new XdrWriter().string(xml))
}

/** Idempotent: stopped by somebody else is as good. */
export async function removeIsolatedNetwork(connection: LibvirtConnection, name: string): Promise<void> {
  const network = await lookup(connection, name)
  if (network === undefined) return
  await refuseUplink(connection, network)
  try {
    await connection.call(procedures.networkDestroy, asArgument(network))
  } catch (error) {
    if ((await lookup(connection, name)) !== undefined) throw error
  }
}

async function refuseUplink(connection: LibvirtConnection, network: Network): Promise<void> {
  const { name } = network
  const xml = (await connection.call(procedures.networkGetXmlDesc, asArgument(network).u32(0))).string()
  if (child(parseXml(xml, 'network', name).root, 'forward') === undefined) return
  const reason = `there is a network ${name}, but it is connected to the outside`
  throw failure('HYPERVISOR_REFUSED', { call: 'the isolated network', reason })
}

async function defineIsolated(connection: LibvirtConnection, name: string): Promise<Network> {
  try {
    const xml = `<network><name>${escapeXml(name)}</name></network>`
    return readNetwork(await connection.call(procedures.networkDefineXml, new XdrWriter().string(xml)))
  } catch (error) {
    const madeByAnother = await lookup(connection, name)
    if (madeByAnother === undefined) throw error
    return madeByAnother
  }
}
