/**
 * The era profiles (W7): which methods `auto` considers, in which order, how copies are rolled back, and the caption of a
 * VM's component. Source: "Backing Up and Restoring Virtual Machines" and "Improvements in Hyper-V Backup 2012 R2";
 * captions: Microsoft's knowledge base, KB2462424 (2008 to 2012) and KB3098315 (2012 R2).
 */
import type { Method } from './method.ts'

export const profiles = ['2008', '2012', '2012r2', 'modern'] as const
export type Profile = (typeof profiles)[number]

/** Before 2012 R2 a VM that could not take part was saved, and host and guest each had one method. */
export const savesByDefault = (profile: Profile): boolean => profile === '2008' || profile === '2012'

/** What a requester's user sees of the VM before the backup: the method in the words of the profile's time. */
export function captionOf(profile: Profile, method: Method, name: string): string {
  const interrupted = method === 'saved-state' || method === 'offline' // VMs that do not run are captioned as saved ones
  if (!savesByDefault(profile)) return `${interrupted ? 'Offline' : 'Online'}\\${name}`
  return `Backup Using ${interrupted ? 'Saved State' : 'Child Partition Snapshot'}\\${name}`
}
