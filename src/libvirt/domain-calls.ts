/**
 * libvirt's calls on domains, one method each: what goes in, what comes out, how long it may take (API reference of
 * libvirt, module libvirt-domain; the layout of arguments in remote_protocol.x). No decisions are taken here.
 * A domain is named by its UUID alone; the daemon needs no more.
 */
import type { LibvirtConnection } from './connection.ts'
import { affectLive, checkpointListFlags, domainStates, type Procedure, procedures } from './protocol.ts'
import { brokenProtocol, type XdrReader, XdrWriter } from './rpc-wire.ts'
import { formatUuid, isUuid, uuidBytes } from './uuid.ts'

/** Saving and restoring memory moves gigabytes. */
const memoryDeadlineMs = 30 * 60_000
/** libvirt itself waits 30 s for another job to end, and a VM that is cut off has 15 s to go by itself. */
const longDeadlineMs = 120_000

/** A screen of 4096 by 2160 as a PPM has 26.5 million bytes. */
const mostScreenBytes = 32 * 1024 * 1024

export interface DomainState {
  readonly state: number
  readonly reason: number
}

export interface BlockJob {
  /** virDomainBlockJobType. */
  readonly type: number
  readonly doneBytes: number
  readonly totalBytes: number
}

export class DomainCalls {
  readonly #connection: LibvirtConnection
  /** Names last seen, only to name VMs in failures. */
  readonly #names = new Map<string, string>()

  constructor(connection: LibvirtConnection) {
    this.#connection = connection
  }

  /** How people call the VM, as far as it is known. */
  nameOf(uuid: string): string {
    return this.#names.get(uuid) ?? uuid
  }

  async #call(procedure: Procedure, uuid: string, args: XdrWriter, deadlineMs?: number): Promise<XdrReader> {
    const options = deadlineMs === undefined ? {} : { deadlineMs }
    return await this.#connection.call(procedure, args, { ...options, vm: this.nameOf(uuid) })
  }

  #domain(uuid: string): XdrWriter {
    return new XdrWriter().string(this.nameOf(uuid)).fixed(uuidBytes(uuid)).i32(-1)
  }

  #readDomain(reader: XdrReader): string {
    const name = reader.string()
    const uuid = formatUuid(reader.fixed(16))
    reader.i32()
    this.#names.set(uuid, name)
    return uuid
  }

  /** UUIDs of all VMs, by name. */
  async list(): Promise<{ uuid: string; name: string }[]> {
    const answer = await this.#connection.call(procedures.connectListAllDomains, new XdrWriter().i32(1).u32(0))
    const uuids = answer.list(24, (reader) => this.#readDomain(reader))
    return uuids
      .map((uuid) => ({ uuid, name: this.nameOf(uuid) }))
      .sort((a, b) => (a.name < b.name ? -1 : Number(a.name > b.name)))
  }

  /** The UUID of a VM by name or UUID. */
  async lookup(nameOrUuid: string): Promise<string> {
    const byUuid = isUuid(nameOrUuid)
    const procedure = byUuid ? procedures.domainLookupByUuid : procedures.domainLookupByName
    const args = byUuid ? new XdrWriter().fixed(uuidBytes(nameOrUuid)) : new XdrWriter().string(nameOrUuid)
    return this.#readDomain(await this.#connection.call(procedure, args, { vm: nameOrUuid }))
  }

  async state(uuid: string): Promise<DomainState> {
    const answer = await this.#call(procedures.domainGetState, uuid, this.#domain(uuid).u32(0))
    return { state: answer.i32(), reason: answer.i32() }
  }

  /** True when there is a QEMU process for the VM, whatever its CPUs do. */
  async isActive(uuid: string): Promise<boolean> {
    return (await this.state(uuid)).state !== domainStates.off
  }

  /** `flags`: xmlFlags; 0 is the XML of the moment. */
  async xml(uuid: string, flags: number): Promise<string> {
    return (await this.#call(procedures.domainGetXmlDesc, uuid, this.#domain(uuid).u32(flags))).string()
  }

  async isPersistent(uuid: string): Promise<boolean> {
    return (await this.#call(procedures.domainIsPersistent, uuid, this.#domain(uuid))).i32() === 1
  }

  async hasManagedSave(uuid: string): Promise<boolean> {
    return (await this.#call(procedures.domainHasManagedSave, uuid, this.#domain(uuid).u32(0))).i32() === 1
  }

  async managedSaveXml(uuid: string, flags: number): Promise<string> {
    return (await this.#call(procedures.domainManagedSaveGetXmlDesc, uuid, this.#domain(uuid).u32(flags))).string()
  }

  async setManagedSaveXml(uuid: string, xml: string): Promise<void> {
    await this.#call(procedures.domainManagedSaveDefineXml, uuid, this.#domain(uuid).optionalString(xml).u32(0))
  }

  async snapshotCount(uuid: string): Promise<number> {
    return (await this.#call(procedures.domainSnapshotNum, uuid, this.#domain(uuid).u32(0))).i32()
  }

  /** What kind of job occupies the VM (virDomainJobType: 0 none); only for an active VM. */
  async jobType(uuid: string): Promise<number> {
    return (await this.#call(procedures.domainGetJobStats, uuid, this.#domain(uuid).u32(0))).i32()
  }

  /** What the job that occupies an active VM tells of itself; undefined when there is none. */
  async jobNumbers(uuid: string): Promise<ReadonlyMap<string, number> | undefined> {
    const answer = await this.#call(procedures.domainGetJobStats, uuid, this.#domain(uuid).u32(0))
    if (answer.i32() === 0) return undefined
    return new Map(answer.list(12, readTypedNumber).flatMap((named) => (named === undefined ? [] : [named])))
  }

  async backupBegin(uuid: string, xml: string, checkpointXml: string | undefined, flags: number): Promise<void> {
    const args = this.#domain(uuid).string(xml).optionalString(checkpointXml).u32(flags)
    await this.#call(procedures.domainBackupBegin, uuid, args, longDeadlineMs)
  }

  async backupXml(uuid: string): Promise<string> {
    return (await this.#call(procedures.domainBackupGetXmlDesc, uuid, this.#domain(uuid).u32(0))).string()
  }

  /** Asks the job to end; it may take a moment more. */
  async abortJob(uuid: string): Promise<void> {
    await this.#call(procedures.domainAbortJob, uuid, this.#domain(uuid), longDeadlineMs)
  }

  /** Names of all checkpoints, parents before their children. */
  async checkpoints(uuid: string): Promise<string[]> {
    const args = this.#domain(uuid).i32(1).u32(checkpointListFlags.topological)
    const answer = await this.#call(procedures.domainListAllCheckpoints, uuid, args)
    return answer.list(28, (reader) => {
      const name = reader.string()
      this.#readDomain(reader)
      return name
    })
  }

  async checkpointXml(uuid: string, name: string, flags: number): Promise<string> {
    const args = this.#checkpoint(uuid, name).u32(flags)
    return (await this.#call(procedures.checkpointGetXmlDesc, uuid, args, longDeadlineMs)).string()
  }

  async checkpointCreate(uuid: string, xml: string, flags: number): Promise<void> {
    await this.#call(procedures.checkpointCreateXml, uuid, this.#domain(uuid).string(xml).u32(flags), longDeadlineMs)
  }

  async checkpointDelete(uuid: string, name: string, flags: number): Promise<void> {
    await this.#call(procedures.checkpointDelete, uuid, this.#checkpoint(uuid, name).u32(flags), longDeadlineMs)
  }

  #checkpoint(uuid: string, name: string): XdrWriter {
    return new XdrWriter().string(name).string(this.nameOf(uuid)).fixed(uuidBytes(uuid)).i32(-1)
  }

  /** Virtual size of a disk. */
  async diskSize(uuid: string, target: string): Promise<number> {
    const args = this.#domain(uuid).string(target).u32(0)
    const answer = await this.#call(procedures.domainGetBlockInfo, uuid, args, 10_000)
    answer.size()
    return answer.size()
  }

  async blockJob(uuid: string, target: string): Promise<BlockJob | undefined> {
    const answer = await this.#call(procedures.domainGetBlockJobInfo, uuid, this.#domain(uuid).string(target).u32(0))
    if (answer.i32() === 0) return undefined
    const type = answer.i32()
    answer.u64()
    return { type, doneBytes: answer.size(), totalBytes: answer.size() }
  }

  async blockCommit(uuid: string, target: string, flags: number): Promise<void> {
    const args = this.#domain(uuid)
      .string(target)
      .optionalString(undefined)
      .optionalString(undefined)
      .u64(0n)
      .u32(flags)
    await this.#call(procedures.domainBlockCommit, uuid, args, longDeadlineMs)
  }

  /** Copies the whole chain beneath the disk's image into it, as fast as it goes. */
  async blockPull(uuid: string, target: string): Promise<void> {
    await this.#call(procedures.domainBlockPull, uuid, this.#domain(uuid).string(target).u64(0n).u32(0), longDeadlineMs)
  }

  async blockJobAbort(uuid: string, target: string, flags: number): Promise<void> {
    const args = this.#domain(uuid).string(target).u32(flags)
    await this.#call(procedures.domainBlockJobAbort, uuid, args, longDeadlineMs)
  }

  async snapshot(uuid: string, xml: string, flags: number): Promise<void> {
    await this.#call(procedures.domainSnapshotCreateXml, uuid, this.#domain(uuid).string(xml).u32(flags))
  }

  /** Changes the running VM only, never its definition. */
  async attachDevice(uuid: string, xml: string): Promise<void> {
    const args = this.#domain(uuid).string(xml).u32(affectLive)
    await this.#call(procedures.domainAttachDeviceFlags, uuid, args, longDeadlineMs)
  }

  /** Resolves when the device is gone, or 5 s later. */
  async detachDevice(uuid: string, xml: string): Promise<void> {
    const args = this.#domain(uuid).string(xml).u32(affectLive)
    await this.#call(procedures.domainDetachDeviceFlags, uuid, args, longDeadlineMs)
  }

  async save(uuid: string, file: string): Promise<void> {
    const args = this.#domain(uuid).string(file).optionalString(undefined).u32(0)
    await this.#call(procedures.domainSaveFlags, uuid, args, memoryDeadlineMs)
  }

  async managedSave(uuid: string, flags: number): Promise<void> {
    await this.#call(procedures.domainManagedSave, uuid, this.#domain(uuid).u32(flags), memoryDeadlineMs)
  }

  async savedXml(file: string): Promise<string> {
    const args = new XdrWriter().string(file).u32(1)
    return (await this.#connection.call(procedures.domainSaveImageGetXmlDesc, args)).string()
  }

  async restore(file: string, xml: string | undefined, flags: number): Promise<void> {
    const args = new XdrWriter().string(file).optionalString(xml).u32(flags)
    await this.#connection.call(procedures.domainRestoreFlags, args, { deadlineMs: memoryDeadlineMs })
  }

  async suspend(uuid: string): Promise<void> {
    await this.#call(procedures.domainSuspend, uuid, this.#domain(uuid))
  }

  async resume(uuid: string): Promise<void> {
    await this.#call(procedures.domainResume, uuid, this.#domain(uuid))
  }

  /** May read a memory image of gigabytes. */
  async start(uuid: string): Promise<void> {
    await this.#call(procedures.domainCreateWithFlags, uuid, this.#domain(uuid).u32(0), memoryDeadlineMs)
  }

  async destroy(uuid: string): Promise<void> {
    await this.#call(procedures.domainDestroy, uuid, this.#domain(uuid), longDeadlineMs)
  }

  async define(xml: string): Promise<string> {
    const args = new XdrWriter().string(xml).u32(0)
    return this.#readDomain(await this.#connection.call(procedures.domainDefineXmlFlags, args))
  }

  async undefine(uuid: string, flags: number): Promise<void> {
    await this.#call(procedures.domainUndefineFlags, uuid, this.#domain(uuid).u32(flags))
  }

  /** The first screen of a running VM, in the format that QEMU writes: PNG, before 7.1 PPM. */
  async screenshot(uuid: string): Promise<Buffer> {
    const options = { deadlineMs: 30_000, maxBytes: mostScreenBytes, vm: this.nameOf(uuid) }
    return await this.#connection.download(procedures.domainScreenshot, this.#domain(uuid).u32(0).u32(0), options)
  }

  async setAgentTimeout(uuid: string, seconds: number): Promise<void> {
    await this.#call(procedures.domainAgentSetResponseTimeout, uuid, this.#domain(uuid).i32(seconds).u32(0))
  }

  /** One command to the guest agent, answered within `seconds` once it has been sent. */
  async agent(uuid: string, command: string, seconds: number): Promise<string> {
    const args = this.#domain(uuid).string(command).i32(seconds).u32(0)
    // libvirt waits up to 30 s for another agent command and 5 s for the agent's first sign of life before that.
    const answer = await this.#call(procedures.agentCommand, uuid, args, (seconds + 40) * 1000)
    return answer.optionalString() ?? ''
  }
}

/** remote_typed_param: a name and a value of one of seven types. Undefined for a text. */
function readTypedNumber(reader: XdrReader): readonly [string, number] | undefined {
  const name = reader.string()
  const type = reader.u32()
  if (type === 1 || type === 6) return [name, reader.i32()]
  if (type === 2) return [name, reader.u32()]
  if (type === 7) return void reader.string()
  if (type < 1 || type > 7) throw brokenProtocol(`a parameter of unknown type ${type}`)
  // Larger numbers than JavaScript counts exactly tell nothing here, and doubles do not occur among what we look at.
  const value = reader.u64()
  return value <= BigInt(Number.MAX_SAFE_INTEGER) && type !== 5 ? [name, Number(value)] : undefined
}
