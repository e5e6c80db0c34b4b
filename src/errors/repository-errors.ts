/**
 * The failures of repositories, a part of the page in ../errors.ts.
 */
import { type ErrorEntry, entry } from './entry.ts'

export const repositoryErrors = {
  REPOSITORY_NOT_FOUND: entry(
    'there is no repository at {path}',
    'Give --repository a place made by umbra repository create or an empty one.',
    'never',
    404,
  ),
  REPOSITORY_NOT_ONE: entry(
    '{path} is not a repository: {reason}',
    'Give --repository a place made by umbra repository create or an empty one.',
    'never',
    409,
  ),
  REPOSITORY_NOT_EMPTY: entry(
    'no repository can be made in {path}: it holds {found}',
    'Give --repository a place made by umbra repository create or an empty one.',
    'never',
    409,
  ),
  REPOSITORY_NEWER_FORMAT: entry(
    '{path} was written by a newer umbra: {reason}',
    'Use the version of umbra that wrote it, or a later one.',
  ),
  REPOSITORY_FULL: entry(
    'the repository is full: {path} needs {neededBytes} bytes',
    'Free some space there and try again; nothing of the recovery points before is lost.',
    'retry',
    507,
  ),
  REPOSITORY_IO: entry(
    'the repository can not be used at {path}: {reason}',
    'Look at the storage of the repository.',
    'retry',
  ),
  REPOSITORY_NO_BUCKET: entry(
    'there is no bucket for {path}: {reason}',
    'Make the bucket first, or correct the s3:// address and its endpoint=.',
    'never',
    404,
  ),
  REPOSITORY_CREDENTIALS: entry(
    'the object store does not accept the credentials for {path}: {reason}',
    'Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; see docs/s3.md.',
    'never',
    403,
  ),
  REPOSITORY_ACCESS_DENIED: entry(
    'the object store does not allow {path}: {reason}',
    'Give these credentials the permissions in docs/s3.md, and look whose bucket it is.',
    'never',
    403,
  ),
  REPOSITORY_REGION: entry(
    'the region for {path} is missing or wrong: {reason}',
    'Add region=NAME to the s3:// address, or set AWS_REGION.',
    'never',
    409,
  ),
  REPOSITORY_CLOCK_SKEW: entry(
    "this host's clock differs too much from the object store's, at {path}: {reason}",
    'Set the clock of this host; see timedatectl.',
    'retry',
    409,
  ),
  REPOSITORY_OBJECT_MISSING: entry(
    '{path} is missing in the repository',
    'Verify the repository; see docs/repository-format.md.',
  ),
  REPOSITORY_DAMAGED: entry('{path} is damaged: {reason}', 'Verify the repository; see docs/repository-format.md.'),
  REPOSITORY_CHUNK_CORRUPT: entry(
    '{stream} of recovery point {point} is damaged at offset {offset}: {reason}',
    'Verify the recovery point to see all of the damage, and restore another one.',
  ),
  REPOSITORY_DRAFT_IN_USE: entry(
    'recovery point {point} is still being written by {writer}',
    'Wait for that backup, or end it; on another host, run umbra recover there.',
    'retry',
    409,
  ),
  REPOSITORY_DRAFT_GIVEN_UP: entry(
    'recovery point {point} can not be completed: it was given up while it was being written',
    'Back up again. Somebody ran umbra collect --give-up while this backup was at work.',
    'retry',
    409,
  ),
  REPOSITORY_DRAFT_NOT_FOUND: entry(
    'nobody is writing a recovery point {draft}',
    'umbra collect --dry-run lists what it waits for.',
    'never',
    404,
  ),
  COLLECT_IN_PROGRESS: entry(
    'the repository is being collected or repaired already, by {writer} ({draft})',
    'Wait until it has ended. If it died on another host, give it up: umbra collect --give-up {draft}.',
    'retry',
    409,
  ),
  COLLECT_UNSURE: entry(
    'nothing was collected: it is not known what recovery point {point} needs: {reason}',
    'Verify it. If it is lost, delete it, or collect as if it were gone: umbra collect --without {point}.',
    'never',
    409,
  ),
  REPOSITORY_LOCKED: entry(
    '{path} is encrypted, and no key was given',
    'Name one: --passphrase-file FILE or --key-file FILE, or UMBRA_PASSPHRASE_FILE, UMBRA_KEY_FILE or UMBRA_PASSPHRASE.',
    'never',
    423,
  ),
  REPOSITORY_WRONG_KEY: entry(
    'that {what} does not open {path}: {reason}',
    'Give another one; umbra repository key list tells which keys there are.',
    'never',
    403,
  ),
  REPOSITORY_NOT_ENCRYPTED: entry(
    '{path} is not encrypted, though a key was given',
    'If it never was, leave the key away (umbra backup: say --no-encryption); else somebody has replaced it.',
    'never',
    409,
  ),
  KEY_INVALID: entry('{what} can not be used: {reason}', 'Give another one; see docs/encryption.md.', 'never', 400, 2),
  KEY_SLOT_NOT_FOUND: entry(
    'no key slot is meant by {slot}: {reason}',
    'umbra repository key list lists the key slots.',
    'never',
    404,
  ),
  KEY_SLOT_IN_USE: entry(
    'the key slot {slot} is the one that the given key opens',
    'Give another key to remove this one, or replace it with umbra repository key change.',
    'never',
    409,
  ),
  KEY_SLOTS_FULL: entry('a repository has at most {mostSlots} key slots', 'Remove one first.', 'never', 409),
  RECOVERY_POINT_NOT_FOUND: entry(
    'there is no recovery point {point}',
    'umbra points lists the recovery points.',
    'never',
    404,
  ),
  RECOVERY_POINT_AMBIGUOUS: entry('{point} fits several recovery points: {points}', 'Type more of it.', 'never', 409),
  RECOVERY_POINT_DAMAGED: entry(
    'the manifest of recovery point {point} is damaged: {reason}',
    'Restore another recovery point, and look at the storage of the repository.',
  ),
  RECOVERY_POINT_PINNED: entry(
    'recovery point {point} is pinned: {note}',
    'If it may go, umbra unpin first.',
    'never',
    409,
  ),
  RECOVERY_POINT_PART_NOT_FOUND: entry(
    'recovery point {point} has no {kind} {name}; it holds {names}',
    'Give one of those names.',
    'never',
    404,
  ),
} as const satisfies Record<string, ErrorEntry>
