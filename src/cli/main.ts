/**
 * Where the process starts. What a backup or a restore needs besides is started first, beside the rest of Umbra.
 */
import { startEarly } from '../requester/watchdog-process.ts'

if (process.argv.some((word) => word === 'backup' || word === 'restore')) startEarly()
await import('./run.ts')
