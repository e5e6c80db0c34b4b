/**
 * THE PAGE: every failure an operator can meet, VSS's own names first.
 * Each entry: the message with {placeholders}, what to do about it, VSS's retry class, the HTTP status, the exit code.
 * A test keeps docs/errors.md equal to this table.
 */
import { Failure, type FailureContext } from './base/failure.ts'
import { type ErrorEntry, entry } from './errors/entry.ts'
import { guestFilesErrors } from './errors/guest-files-errors.ts'
import { repositoryErrors } from './errors/repository-errors.ts'

export type { ErrorEntry, RetryClass } from './errors/entry.ts'

export const errorCatalogue = {
  // VSS
  VSS_BAD_STATE: entry(
    '{call} is not possible in state {state}',
    'This is a mistake of the calling program.',
    'never',
    409,
  ),
  VSS_SNAPSHOT_SET_IN_PROGRESS: entry(
    'another snapshot set is being created on this host',
    'Wait until the other backup has taken its copies, then try again.',
    'retry',
    409,
  ),
  VSS_INSTANTS_FAILED: entry(
    'no VM was backed up; several could not be frozen or copied: {reasons}',
    'Put right what is named, or leave those VMs out.',
    'retry',
    409,
  ),
  VSS_WRITER_VETO: entry('no VM was {done}: {reasons}', 'Put right what is named, or leave that VM out.', 'retry', 409),
  VSS_WRITER_TIMEOUT: entry(
    'freezing took too long (the window is {limitMs} ms): {reasons}',
    'Back up fewer VMs at one instant (--instant vm), or choose --method checkpoint.',
    'reduce-load',
    504,
  ),
  VSS_HOLD_WRITES_TIMEOUT: entry(
    'the copies were not taken within the {limitMs} ms for which writes may be held',
    'Back up fewer VMs at once, or look for slow storage.',
    'reduce-load',
    504,
  ),
  VSS_PROVIDER_VETO: entry(
    'the copies could not be made: {reasons}',
    'Put right what is named and try again.',
    'retry',
  ),
  VSS_VOLUME_NOT_SUPPORTED: entry(
    'no provider can copy {volume}',
    'Leave that VM out, or move the disk to a supported format.',
  ),
  VSS_INSUFFICIENT_STORAGE: entry(
    '{path} has {freeBytes} bytes free, {neededBytes} are needed',
    'Free some space there and try again.',
    'retry',
    507,
  ),
  VOLUME_COPY_FAILED: entry(
    'the copy {path}: {reason}',
    'Put right what is named; umbra recover tries again to remove a copy that is left.',
    'retry',
  ),
  VSS_INVALID_XML_DOCUMENT: entry(
    '{document} is not a valid VSS document: {reason}',
    'The document is damaged; verify the recovery point.',
  ),
  // command line and configuration
  USAGE: entry('{reason}', 'See umbra --help.', 'never', 400, 2),
  CONFIG_INVALID: entry('{path}: {reason}', 'Correct the configuration and try again.', 'never', 400, 2),
  CLEANUP_INCOMPLETE: entry(
    'done, but this is left: {steps}',
    'Run umbra recover once the cause is gone.',
    'retry',
    500,
    3,
  ),
  SESSION_INTERRUPTED: entry(
    'an earlier session was interrupted and could not be undone: {steps}',
    'Run umbra recover; see its report.',
    'retry',
  ),
  HOST_IO: entry('{reason}', 'Look at the file or directory that it names, and who may use it.', 'retry'),
  DEADLINE_EXCEEDED: entry(
    '{what} did not finish within {limitMs} ms',
    'Look at the host and try again.',
    'retry',
    504,
  ),
  // VMs, hypervisor and guests
  HYPERVISOR_UNREACHABLE: entry(
    '{uri} can not be reached: {reason}',
    'Start libvirtd, or name another one with --connect.',
    'retry',
    503,
  ),
  HYPERVISOR_URI_UNSUPPORTED: entry(
    '{uri} is not a libvirt address that Umbra understands',
    'Use qemu:///system or qemu+unix:///system?socket=PATH.',
    'never',
    400,
    2,
  ),
  HYPERVISOR_REFUSED: entry('libvirt refused {call}: {reason}', 'See the message and the log of libvirtd.', 'retry'),
  HYPERVISOR_PROTOCOL: entry(
    'the libvirt server broke the protocol: {reason}',
    'Report this with the version of libvirt.',
  ),
  VM_NOT_FOUND: entry('there is no VM {vm}; there are: {known}', 'See umbra vms.', 'never', 404),
  CLUSTER_NOT_ANSWERING: entry(
    'the cluster of this host does not do what it is asked: {reason}',
    'See crm_mon; a VM of a cluster is only touched with the cluster. Stop the cluster software where there is to be none.',
    'retry',
  ),
  VM_BUSY: entry('{vm} is occupied: {reason}', 'Wait until that has ended, then try again.', 'retry', 409),
  VM_STATE: entry('{vm} is {state}: {reason}', 'Bring the VM into a suitable state and try again.', 'retry', 409),
  VM_METHOD_UNSUPPORTED: entry(
    '{vm} can not be backed up by {method}: {unmet}',
    'Meet the conditions, or use --method auto.',
    'never',
    409,
  ),
  VM_CONSISTENCY_UNMET: entry(
    '{vm} would reach {achieved} where {required} is required: {reason}',
    'Lower --require, or meet the conditions.',
    'never',
    409,
  ),
  VM_CONFIGURATION_INVALID: entry('the configuration of {vm} can not be read: {reason}', 'Correct it with virsh edit.'),
  VM_NOT_RESTORED: entry(
    '{vm} was not restored: {reason}',
    'The former VM is back where it was; put the cause right and restore again.',
    'retry',
  ),
  MERGE_REFUSED: entry(
    'the overlay {overlay} of {vm} can not be merged: {reason}',
    'Nothing was lost; look at the disk with virsh domblklist, then run umbra recover.',
    'retry',
  ),
  TRACKING_DOUBTFUL: entry(
    'what has changed on {vm} can not be told by {point}: {reason}',
    'Back up again: such a disk is then read whole and compared.',
    'retry',
    409,
  ),
  BACKUP_JOB_LOST: entry(
    'the backup job of {vm} is over before its copies were read: {reason}',
    'See whether the VM was turned off or its job ended by somebody else, then back up again.',
    'retry',
    409,
  ),
  GUEST_NOT_RESPONDING: entry(
    'the guest agent of {vm} does not answer: {reason}',
    'Look at the agent in the guest, or use --method checkpoint.',
    'retry',
    504,
  ),
  GUEST_REFUSED: entry(
    'the guest agent of {vm} refused {call}: {reason}',
    'Look at the agent and its hooks in the guest.',
    'retry',
    409,
  ),
  GUEST_WRITER_VETO: entry(
    'a writer inside {vm} vetoed: {reason}',
    'Look at that writer in the guest (/etc/umbra/writers.d), or use --method guest-freeze.',
    'retry',
    409,
  ),
  GUEST_SET_LOST: entry(
    'the snapshot inside {vm} can not be relied upon: {reason}',
    'Try again; if its snapshot area filled up, leave more room free in the volume group of the guest.',
    'retry',
    409,
  ),
  // auto-recovery
  RECOVERY_FAILED: entry(
    'the copies of {vm} could not be rolled back to its own snapshot ({way}): {reason}',
    'Try again, or use --method guest-freeze.',
    'retry',
    500,
  ),
  HELPER_VM_FAILED: entry(
    'the helper VM failed: {reason}',
    'Run umbra doctor; helper-vm/build makes its kernel and initramfs.',
    'retry',
    500,
  ),
  VOLUMES_NOT_UNDERSTOOD: entry(
    'the volumes on {disk} are not understood: {reason}',
    'Use another method, or another way of auto-recovery.',
    'never',
    422,
  ),
  // files of the host
  FILES_HOOK_FAILED: entry(
    'the hook of {name} could not {verb} it: {reason}',
    'Look at the hook that the configuration names for it; see docs/host-files.md.',
    'retry',
    409,
  ),
  FILES_NOT_COPIED: entry(
    '{path} can not be copied: {reason}',
    'Put right what it says, or exclude it; see docs/host-files.md.',
    'retry',
    409,
  ),
  FILES_TOO_LARGE: entry(
    '{directory} holds {sizeBytes} bytes; while writes are held at most {limitBytes} are copied',
    'Move it to btrfs or XFS, exclude what need not be kept, or raise filesCopyLimitBytes.',
    'never',
    409,
  ),
  FILES_ARCHIVE_INVALID: entry(
    'the stored files are not an archive that Umbra made: {reason}',
    'Verify the recovery point, and restore another one.',
  ),
  // instant restore
  INSTANT_NOT_FOUND: entry('there is no instant restore {vm}; there are: {known}', 'See umbra instant.', 'never', 404),
  INSTANT_EXISTS: entry(
    'there is an instant restore {vm} already',
    'Choose another name with --as, or end that one: umbra instant finish, or umbra instant drop.',
    'never',
    409,
  ),
  INSTANT_RECORD_INVALID: entry(
    '{path} is not a record of an instant restore',
    'Look at that file; the VM that it speaks of has its disks beside it.',
  ),
  INSTANT_NOT_STARTED: entry(
    '{vm} was not started: {reason}',
    'What was made for it has been removed; put the cause right and try again.',
    'retry',
  ),
  INSTANT_NOT_PULLED: entry(
    '{vm} is not finished, a disk could not be pulled in: {reason}',
    'Nothing is lost: the VM goes on as before. Put the cause right and finish again.',
    'retry',
  ),
  INSTANT_SERVER_FAILED: entry(
    'the disks of {vm} can not be served: {reason}',
    'Put right what is named, then run umbra recover.',
    'retry',
    503,
  ),
  // disks
  DISK_READ_FAILED: entry(
    'reading {disk} failed at offset {offset}: {reason}',
    'Look at the storage of that disk.',
    'retry',
  ),
  DISK_WRITE_FAILED: entry(
    'writing {disk} failed at offset {offset}: {reason}',
    'Look at the storage of that disk.',
    'retry',
  ),
  NBD_PROTOCOL: entry(
    'the NBD server at {address} broke the protocol: {reason}',
    'Report this with the version of QEMU.',
  ),
  NBD_CONNECT_FAILED: entry(
    'no connection to the NBD server at {address}: {reason}',
    'Look at the host and try again.',
    'retry',
  ),
  NBD_CONNECTION_LOST: entry(
    'the connection to the NBD server at {address} was lost: {reason}',
    'Look at the host and try again.',
    'retry',
  ),
  NBD_EXPORT_REFUSED: entry(
    'the NBD server at {address} refused {exportName}: {reason}',
    'Look at the host and try again.',
    'retry',
  ),
  NBD_LISTEN_FAILED: entry(
    'disks can not be served at {address}: {reason}',
    'Look at the directory of that socket, and whether another umbra serves there.',
    'retry',
  ),
  COMMAND_FAILED: entry('{command} failed: {reason}', 'Put right what it says and try again.', 'retry'),
  DISK_EXPORT_FAILED: entry(
    'the disks {disks} could not be opened for transfer: {reason}',
    'Look whether another program holds the image, and whether its file still exists.',
    'retry',
  ),
  EXPORT_FILE_EXISTS: entry(
    '{path} is there already',
    'Choose another directory, or move it away: an export replaces nothing.',
    'never',
    409,
  ),
  EXPORT_CHECK_FAILED: entry(
    '{path} was not exported: {reason}',
    'Verify the recovery point, look at the storage of that directory, and try again.',
    'retry',
  ),
  MOUNT_FAILED: entry(
    'nothing can be mounted at {paths}: {reason}',
    'Mounting needs /dev/fuse and qemu-storage-daemon, and fusermount3 for other users than root; see docs/export.md.',
    'never',
    503,
  ),
  DISK_IMAGE_INVALID: entry('{path} is not a usable disk image: {reason}', 'Look at that image with qemu-img info.'),
  ...guestFilesErrors,
  ...repositoryErrors,
} as const satisfies Record<string, ErrorEntry>

export type ErrorCode = keyof typeof errorCatalogue

/** Makes the failure of `code`, its message filled in from `context`. */
export function failure(code: ErrorCode, context: FailureContext = {}, cause?: unknown): Failure {
  const { message, hint } = errorCatalogue[code]
  const filled = message.replace(/\{(\w+)\}/g, (_, key: string) => {
    const value = context[key]
    return Array.isArray(value) ? value.join('; ') : String(value ?? `<${key}>`)
  })
  return new Failure(code, filled, { context, hint, ...(cause === undefined ? {} : { cause }) })
}

/** The catalogue entry behind any thrown thing; undefined for a bug. */
export function errorEntry(error: unknown): ErrorEntry | undefined {
  return error instanceof Failure ? errorCatalogue[error.code as ErrorCode] : undefined
}
