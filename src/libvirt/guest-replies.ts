/**
 * What a guest agent answers (QEMU documentation, "QEMU Guest Agent Protocol Reference"), checked field by field: the
 * guest belongs to somebody else, and everything it says may be wrong, missing or hostile.
 */
import { z } from 'zod'

const count = z.number().int().min(0).max(100_000)
const shortText = z.string().max(4096)

/** Answers to freeze and thaw: how many file systems. */
export const countReply = count
export const anyReply = z.unknown()
export const statusReply = z.enum(['frozen', 'thawed'])

export const osReply = z.object({
  id: shortText.optional(),
  name: shortText.optional(),
  'pretty-name': shortText.optional(),
  version: shortText.optional(),
  'version-id': shortText.optional(),
})

const pciAddress = z.object({
  domain: z.number().int(),
  bus: z.number().int(),
  slot: z.number().int(),
  function: z.number().int(),
})

const guestDisk = z.object({
  'bus-type': shortText,
  bus: z.number().int(),
  target: z.number().int(),
  unit: z.number().int(),
  'pci-controller': pciAddress.optional(),
  serial: shortText.optional(),
  dev: shortText.optional(),
})

/** A disk as the guest sees it. */
export type GuestDisk = z.infer<typeof guestDisk>

export const fileSystemsReply = z
  .array(
    z.object({
      name: shortText.optional(),
      mountpoint: shortText,
      type: shortText,
      disk: z.array(guestDisk).max(1024),
    }),
  )
  .max(4096)

export const disksReply = z
  .array(
    z.object({
      name: shortText,
      partition: z.boolean(),
      dependencies: z.array(shortText).max(1024).default([]),
      address: guestDisk.optional(),
    }),
  )
  .max(4096)

export const interfacesReply = z
  .array(
    z.object({
      name: shortText,
      'ip-addresses': z
        .array(z.object({ 'ip-address': shortText, 'ip-address-type': z.enum(['ipv4', 'ipv6']) }))
        .max(1024)
        .default([]),
    }),
  )
  .max(1024)

export const infoReply = z.object({
  supported_commands: z.array(z.object({ name: shortText, enabled: z.boolean() })).max(1024),
})

export const handleReply = z.number().int()
export const writeReply = z.object({ count: z.number().int(), eof: z.boolean().optional() })
export const readReply = z.object({ count: z.number().int(), 'buf-b64': z.string(), eof: z.boolean() })

export const execReply = z.object({ pid: z.number().int() })

export const execStatusReply = z.object({
  exited: z.boolean(),
  exitcode: z.number().int().optional(),
  signal: z.number().int().optional(),
  'out-data': z.string().optional(),
  'err-data': z.string().optional(),
})

export const commandReply = z.union([
  z.object({ return: z.unknown() }).transform((reply) => ({ value: reply.return })),
  z.object({ error: z.object({ desc: shortText.optional(), class: shortText.optional() }) }),
])
