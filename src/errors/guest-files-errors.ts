/**
 * The failures of reading files out of a recovery point, a part of the page in ../errors.ts.
 */
import { type ErrorEntry, entry } from './entry.ts'

export const guestFilesErrors = {
  GUEST_FILE_SYSTEM_NOT_FOUND: entry(
    'the VM has no file system {name}; there are: {known}',
    'See umbra files POINT ls.',
    'never',
    404,
  ),
  GUEST_FILE_SYSTEM_UNREADABLE: entry(
    'the file system {name} can not be read: {reason}',
    'See umbra files POINT ls for its type; the whole disk comes back with umbra export or umbra restore.',
    'never',
    409,
  ),
  GUEST_PATH_NOT_FOUND: entry(
    'there is no {path}: {reason}',
    'See umbra files POINT ls; a symbolic link leads only within its file system.',
    'never',
    404,
  ),
  GUEST_PATH_AMBIGUOUS: entry(
    '{path} is on several file systems: {places}',
    'Name the file system before the path: vda1:/etc.',
    'never',
    409,
  ),
  GUEST_FILES_INCOMPLETE: entry(
    '{path} could not be read as a whole: {reason}',
    'Verify the recovery point; if it is sound, the file system itself is damaged.',
  ),
  GUEST_FILES_REFUSED: entry(
    'what came out of the guest is not taken: {reason}',
    'Its file system is damaged, or was made to do harm.',
  ),
} as const satisfies Record<string, ErrorEntry>
