/**
 * What the verbs that plan a backup have in common: the era profile, and the policy that options and settings make.
 */
import { Option } from 'commander'
import type { Configuration } from '../config.ts'
import { type BackupPolicy, defaultPolicy } from '../vm/method.ts'
import { type Profile, profiles } from '../vm/profile.ts'

export interface ProfileOption {
  readonly profile?: Profile
}

export const profileOption = (): Option =>
  new Option(
    '--profile <era>',
    `choose methods as that version of Hyper-V does (default: ${defaultPolicy.profile}, or profile: in the configuration file)`,
  ).choices(profiles)

/** What is not asked for is as settled, else as always. */
export function policyOf(settings: Configuration, asked: Partial<BackupPolicy> = {}): BackupPolicy {
  return { ...defaultPolicy, ...(settings.profile === undefined ? {} : { profile: settings.profile }), ...asked }
}
