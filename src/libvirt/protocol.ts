/**
 * The numbers of libvirt's remote protocol: programs, procedures, flags, error codes. Source: remote_protocol.x,
 * qemu_protocol.x, virkeepaliveprotocol.x and the API reference of libvirt; numbers are only ever added there.
 * `repeatable` says whether a call may be sent again when nobody knows if the first one arrived.
 */

export const programs = { remote: 0x20008086, qemu: 0x20008087, keepalive: 0x6b656570 } as const
export const protocolVersion = 1
export const keepaliveProcedures = { ping: 1, pong: 2 } as const

export interface Procedure {
  readonly program: number
  readonly number: number
  /** libvirt's name of the call, for people. */
  readonly name: string
  readonly repeatable: boolean
}

const reads = (number: number, name: string): Procedure => ({
  program: programs.remote,
  number,
  name,
  repeatable: true,
})
const changes = (number: number, name: string): Procedure => ({ ...reads(number, name), repeatable: false })

export const procedures = {
  connectOpen: reads(1, 'virConnectOpen'),
  connectGetType: reads(3, 'virConnectGetType'),
  connectGetVersion: reads(4, 'virConnectGetVersion'),
  connectGetCapabilities: reads(7, 'virConnectGetCapabilities'),
  connectGetDomainCapabilities: reads(342, 'virConnectGetDomainCapabilities'),
  connectCompareHypervisorCpu: reads(393, 'virConnectCompareHypervisorCPU'),
  connectGetHostname: reads(59, 'virConnectGetHostname'),
  connectGetLibVersion: reads(157, 'virConnectGetLibVersion'),
  authList: reads(66, 'authentication list'),
  authPolkit: reads(70, 'polkit authentication'),
  connectListAllDomains: reads(273, 'virConnectListAllDomains'),
  connectListAllNetworks: reads(283, 'virConnectListAllNetworks'),
  eventRegister: reads(316, 'virConnectDomainEventRegisterAny'),
  domainLookupByName: reads(23, 'virDomainLookupByName'),
  domainLookupByUuid: reads(24, 'virDomainLookupByUUID'),
  domainGetState: reads(212, 'virDomainGetState'),
  domainGetXmlDesc: reads(14, 'virDomainGetXMLDesc'),
  domainIsPersistent: reads(151, 'virDomainIsPersistent'),
  domainHasManagedSave: reads(183, 'virDomainHasManagedSaveImage'),
  domainManagedSaveGetXmlDesc: reads(388, 'virDomainManagedSaveGetXMLDesc'),
  domainManagedSaveDefineXml: reads(389, 'virDomainManagedSaveDefineXML'),
  domainSnapshotNum: reads(187, 'virDomainSnapshotNum'),
  domainGetJobStats: reads(298, 'virDomainGetJobStats'),
  domainGetBlockInfo: reads(194, 'virDomainGetBlockInfo'),
  domainGetBlockJobInfo: reads(238, 'virDomainGetBlockJobInfo'),
  domainSaveImageGetXmlDesc: reads(235, 'virDomainSaveImageGetXMLDesc'),
  domainSaveFlags: changes(232, 'virDomainSaveFlags'),
  domainRestoreFlags: changes(233, 'virDomainRestoreFlags'),
  domainManagedSave: changes(182, 'virDomainManagedSave'),
  domainSuspend: changes(34, 'virDomainSuspend'),
  domainResume: changes(28, 'virDomainResume'),
  domainCreateWithFlags: changes(196, 'virDomainCreateWithFlags'),
  domainDestroy: changes(12, 'virDomainDestroy'),
  domainSnapshotCreateXml: changes(185, 'virDomainSnapshotCreateXML'),
  domainBlockCommit: changes(290, 'virDomainBlockCommit'),
  domainBlockPull: changes(240, 'virDomainBlockPull'),
  domainBlockJobAbort: changes(237, 'virDomainBlockJobAbort'),
  domainAttachDeviceFlags: changes(160, 'virDomainAttachDeviceFlags'),
  domainDetachDeviceFlags: changes(161, 'virDomainDetachDeviceFlags'),
  domainDefineXmlFlags: reads(350, 'virDomainDefineXMLFlags'),
  domainUndefineFlags: changes(231, 'virDomainUndefineFlags'),
  domainAgentSetResponseTimeout: reads(420, 'virDomainAgentSetResponseTimeout'),
  domainBackupBegin: changes(421, 'virDomainBackupBegin'),
  domainBackupGetXmlDesc: reads(422, 'virDomainBackupGetXMLDesc'),
  domainAbortJob: changes(164, 'virDomainAbortJob'),
  domainListAllCheckpoints: reads(413, 'virDomainListAllCheckpoints'),
  checkpointGetXmlDesc: reads(412, 'virDomainCheckpointGetXMLDesc'),
  checkpointCreateXml: changes(411, 'virDomainCheckpointCreateXML'),
  checkpointDelete: changes(417, 'virDomainCheckpointDelete'),
  networkLookupByName: reads(46, 'virNetworkLookupByName'),
  networkIsActive: reads(152, 'virNetworkIsActive'),
  networkGetXmlDesc: reads(43, 'virNetworkGetXMLDesc'),
  networkDefineXml: changes(41, 'virNetworkDefineXML'),
  networkCreate: changes(39, 'virNetworkCreate'),
  networkCreateXml: changes(40, 'virNetworkCreateXML'),
  networkDestroy: changes(42, 'virNetworkDestroy'),
  domainScreenshot: reads(211, 'virDomainScreenshot'),
  networkSetAutostart: reads(48, 'virNetworkSetAutostart'),
  agentCommand: { ...changes(3, 'virDomainQemuAgentCommand'), program: programs.qemu },
} as const satisfies Record<string, Procedure>

/** Event ids of eventRegister, and the procedures under which the events arrive. */
export const eventNumbers = {
  lifecycle: { id: 0, procedure: 318 },
  ioError: { id: 6, procedure: 324 },
  blockJob: { id: 16, procedure: 339 },
  agentLifecycle: { id: 18, procedure: 348 },
} as const

/** virErrorNumber, as far as we tell them apart. */
export const libvirtCodes = {
  internalError: 1,
  invalidArgument: 8,
  noDomain: 42,
  noNetwork: 43,
  operationInvalid: 55,
  operationTimeout: 68,
  argumentUnsupported: 74,
  blockCopyActive: 83,
  agentUnresponsive: 86,
  resourceBusy: 87,
  cpuIncompatible: 91,
  agentUnsynced: 97,
  noDomainMetadata: 80,
  noCheckpoint: 103,
  noBackup: 104,
  checkpointInconsistent: 109,
  agentCommandTimeout: 112,
  agentCommandFailed: 113,
} as const

/** virDomainState. */
export const domainStates = {
  running: 1,
  blocked: 2,
  paused: 3,
  shuttingDown: 4,
  off: 5,
  crashed: 6,
  suspendedByGuest: 7,
} as const
/** virDomainShutoffReason VIR_DOMAIN_SHUTOFF_SHUTDOWN: the guest ended by itself. */
export const shutOffByGuest = 1

/** virDomainPausedReason VIR_DOMAIN_PAUSED_IOERROR: a disk of the VM met an error, mostly a full file system. */
export const pausedByIoError = 5

/** virDomainModificationImpact VIR_DOMAIN_AFFECT_LIVE. */
export const affectLive = 1
export const xmlFlags = { secure: 1, inactive: 2 } as const
export const saveFlags = { running: 2, paused: 4 } as const
export const snapshotFlags = { noMetadata: 4, diskOnly: 16, reuseExisting: 32, atomic: 128 } as const
export const undefineFlags = {
  managedSave: 1,
  snapshotsMetadata: 2,
  nvram: 4,
  keepNvram: 8,
  checkpointsMetadata: 16,
  tpm: 32,
  keepTpm: 64,
} as const
export const backupBeginFlags = { reuseExisting: 1 } as const
/** Parents come before their children. */
export const checkpointListFlags = { topological: 2 } as const
export const checkpointXmlFlags = { withoutDomain: 2, size: 4 } as const
export const checkpointCreateFlags = { redefine: 1 } as const
export const checkpointDeleteFlags = { metadataOnly: 2 } as const
/** virDomainBlockJobType VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP. */
export const backupBlockJob = 5
/** virDomainJobOperation VIR_DOMAIN_JOB_OPERATION_BACKUP. */
export const backupOperation = 9
export const blockCommitFlags = { shallow: 1, active: 4 } as const
export const blockJobAbortFlags = { async: 1, pivot: 2 } as const
/** virDomainBlockJobType VIR_DOMAIN_BLOCK_JOB_TYPE_PULL. */
export const pullBlockJob = 1
