/**
 * How people call image formats, and how their files end: QEMU calls a VHD "vpc", after Virtual PC.
 */

/** By QEMU's name of the format. */
export const imageSuffixes: Readonly<Record<string, string>> = {
  raw: '.raw',
  qcow2: '.qcow2',
  vpc: '.vhd',
  vhdx: '.vhdx',
}

/** QEMU's names by suffix. */
export const suffixFormats: Readonly<Record<string, string>> = Object.fromEntries(
  Object.entries(imageSuffixes).map(([format, suffix]) => [suffix, format]),
)

/** For people. */
export const imageName = (format: string): string => (format === 'vpc' ? 'vhd' : format)
