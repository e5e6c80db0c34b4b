/**
 * Disks as a guest's own snapshots leave them, made by a real kernel: the helper VM's kernel and programs boot with a
 * script instead of its init. Nothing of it touches the host's kernel, and no root is needed.
 */
import { execFile, spawn } from 'node:child_process'
import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { createImage, createOverlay } from '../../src/libvirt/disk-image.ts'
import type { HelperVmImages } from '../../src/libvirt/helper-vm-images.ts'

export const set = '00c0ffee'

export interface SceneDisk {
  readonly serial: string
  readonly path: string
  readonly format: 'raw' | 'qcow2'
}

const mebibyte = 1024 * 1024

/** Functions for every script. The volumes of a group that is made here are named as docs/guest-protocol.md says. */
const prelude = `
export PATH=/sbin:/bin LC_ALL=C DM_DISABLE_UDEV=1 SET=${set}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null; mount -t tmpfs run /run
exec </dev/null >/dev/ttyS0 2>&1
modprobe -a virtio_pci virtio_scsi sd_mod dm-mod dm-snapshot dm-thin-pool btrfs
disk() {
  tries=0
  while [ $tries -lt 200 ]; do
    for entry in /sys/block/sd*; do
      [ "$(cat $entry/device/vpd_pg80 2>/dev/null | tail -c +5 | tr -d '\\0')" = "$1" ] && echo /dev/\${entry##*/} && return
    done
    usleep 50000; tries=$((tries + 1))
  done
}
quiet() { "$@" >/run/quiet 2>&1 && return; code=$?; echo "FAILED $*"; cat /run/quiet; exit $code; }
sum() { echo "sum $1 $(md5sum <$2 | cut -c1-32)"; }
scribble() { # DEVICE MIB: writes here and there
  for at in 0 1 3 4 5 6 7 11 13 17 19; do
    [ $at -lt $2 ] && dd if=/dev/urandom of=$1 bs=64k count=3 seek=$((at * 16 + 1)) conv=notrunc,fsync 2>/dev/null
  done
}
tags() { echo --addtag umbra --addtag umbra.set=$SET --addtag umbra.origin=$1; }
shadow() { # GROUP VOLUME NUMBER MIB
  quiet lvm lvcreate -qq -y -L $4m -n umbra_\${SET}_$3 $(tags $2) $1
  dd if=/dev/zero of=/dev/$1/umbra_\${SET}_$3 bs=4096 count=1 conv=fsync 2>/dev/null
  dmsetup table $1-$2 >/run/table; size=$(awk '{ n += $2 } END { print n }' /run/table)
  quiet dmsetup create real-$1-$2 /run/table
  echo "0 $size snapshot-origin /dev/mapper/real-$1-$2" >/run/origin
  echo "0 $size snapshot /dev/mapper/real-$1-$2 /dev/$1/umbra_\${SET}_$3 P 8" >/run/snapshot
  quiet dmsetup suspend $1-$2
  quiet dmsetup create snapshot-$1-$2 /run/snapshot
  quiet dmsetup load $1-$2 /run/origin
  quiet dmsetup resume $1-$2
}
`

/** Runs a script over disks and answers its lines; `programs` are files that it finds in /sbin. */
export async function runInKernel(
  images: HelperVmImages,
  directory: string,
  disks: readonly SceneDisk[],
  script: string,
  programs: readonly string[] = [],
): Promise<string[]> {
  const tree = join(directory, `scene-${disks.length}-${Math.random().toString(16).slice(2)}`)
  await mkdir(tree)
  await writeFile(join(tree, 'scene'), `#!/bin/sh\n(\n${prelude}\n${script}\n)\n`, { mode: 0o755 })
  const after = '#!/bin/sh\n/scene\necho "scene ended $?" >/dev/ttyS0\nsync\n/bin/busybox poweroff -f\n'
  await writeFile(join(tree, 'begin'), after, { mode: 0o755 })
  await mkdir(join(tree, 'sbin'))
  for (const program of programs) await copyFile(program, join(tree, 'sbin', basename(program)))
  const initrd = `${tree}.cpio`
  const pack = `(cat "$1"; cd "$2" && find scene begin sbin -type f | cpio --quiet -o -H newc) >"$3"`
  await promisify(execFile)('sh', ['-c', pack, 'sh', images.initrd, tree, initrd])
  const drives = disks.flatMap(({ path, format, serial }, i) => [
    ...[
      '-blockdev',
      JSON.stringify({ driver: format, 'node-name': `d${i}`, file: { driver: 'file', filename: path } }),
    ],
    ...['-device', `scsi-hd,bus=scsi.0,scsi-id=${i},drive=d${i},serial=${serial}`],
  ])
  const append = 'console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/begin no_timer_check tsc=reliable mitigations=off'
  const more =
    'initcall_blacklist=init_kprobe_trace,crypto_kdf108_init random.trust_cpu=on cryptomgr.notests lsm= audit=0'
  const child = spawn(
    'setpriv',
    [
      ...['--pdeathsig', 'KILL', '--', 'qemu-system-x86_64', '-nodefaults', '-no-reboot', '-display', 'none'],
      ...['-machine', 'q35', '-accel', 'tcg', '-cpu', 'qemu64,+ssse3,+sse4.2', '-m', '320', '-serial', 'stdio'],
      ...['-kernel', images.kernel, '-initrd', initrd, '-append', `${append} ${more}`],
      ...['-device', 'virtio-scsi-pci,id=scsi', ...drives],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'], timeout: 180_000, killSignal: 'SIGKILL' },
  )
  let said = ''
  const gather = (bytes: Buffer) => {
    said += bytes
  }
  child.stdout.on('data', gather)
  child.stderr.on('data', gather)
  await new Promise((resolve) => child.on('close', resolve))
  const lines = said
    .replaceAll('\r', '')
    .split('\n')
    .filter((line) => !/^(\[.*)?$/.test(line))
  if (lines.at(-1) !== 'scene ended 0') throw new Error(`the scene failed:\n${lines.slice(-40).join('\n')}`)
  return lines.slice(0, -1)
}

/** `sum NAME MD5` lines as a record. */
export function sums(lines: readonly string[]): Record<string, string> {
  const found = lines.map((line) => line.split(' ')).filter(([word]) => word === 'sum')
  return Object.fromEntries(found.map(([, name, md5]) => [name, md5]))
}

export const sceneNames = ['a', 'b', 'part', 'thin', 'btrfs'] as const

/** Empty disks of a VM; the btrfs one is formatted. */
export async function emptyDisks(directory: string): Promise<SceneDisk[]> {
  const disks: SceneDisk[] = []
  for (const name of sceneNames) {
    const path = join(directory, `${name}.raw`)
    await createImage(path, 'raw', (name === 'btrfs' ? 160 : 112) * mebibyte)
    disks.push({ serial: `orig-${name}`, path, format: 'raw' })
  }
  await promisify(execFile)('mkfs.btrfs', ['-q', '-m', 'single', join(directory, 'btrfs.raw')])
  return disks
}

/** Writable copies, as Umbra makes them for auto-recovery. */
export async function copiesOf(disks: readonly SceneDisk[], directory: string, name: string): Promise<SceneDisk[]> {
  const copies: SceneDisk[] = []
  for (const { path, format, serial } of disks) {
    const copy = join(directory, `${name}-${serial}.qcow2`)
    await createOverlay(copy, path, format)
    copies.push({ serial: serial.replace('orig', name), path: copy, format: 'qcow2' })
  }
  return copies
}

/** The groups belong to a system that the helper VM is not. */
const guestLvm = `lvm() {
  command lvm "$@" --config \
    'global { thin_check_executable="" system_id_source="lvmlocal" } local { system_id="the-guest" }'
}`

/** A guest that takes its own snapshot of everything and writes on; the sums are those of the instant. */
export const guestScript = `
A=$(disk orig-a) B=$(disk orig-b) P=$(disk orig-part) T=$(disk orig-thin) F=$(disk orig-btrfs)
${guestLvm}
quiet lvm pvcreate -qq -y $A $B $T
quiet lvm vgcreate -qq -y -s 4m datavg $A $B
quiet lvm lvcreate -qq -y -Zn -Wn -L 16m -n logs datavg
quiet lvm lvcreate -qq -y -Zn -Wn -i 2 -I 64k -L 24m -n data datavg
quiet lvm lvextend -qq -L 32m datavg/logs
printf 'n\\np\\n1\\n2048\\n\\nw\\n' | fdisk $P >/dev/null 2>&1
quiet lvm pvcreate -qq -y \${P}1
quiet lvm vgcreate -qq -y -s 4m partvg \${P}1
quiet lvm lvcreate -qq -y -Zn -Wn -L 16m -n vol partvg
quiet lvm vgcreate -qq -y -s 4m thinvg $T
quiet lvm lvcreate -qq -y -Zn --poolmetadatasize 4m --poolmetadataspare n -c 64k -L 64m -T thinvg/pool
quiet lvm lvcreate -qq -y -V 24m -T thinvg/pool -n other
quiet lvm lvcreate -qq -y -V 24m -T thinvg/pool -n vol
for volume in datavg/logs datavg/data partvg/vol thinvg/vol thinvg/other; do scribble /dev/$volume 24; done
mkdir -p /run/top; mount -t btrfs -o subvolid=5 $F /run/top || exit 1
quiet btrfs subvolume create '/run/top/my vol'; quiet btrfs subvolume create '/run/top/my vol/inside'
quiet btrfs subvolume set-default "$(btrfs subvolume list /run/top | awk '$NF == "vol" { print $2 }')" /run/top
quiet btrfs subvolume create /run/top/untouched
head -c 3000000 /dev/urandom >'/run/top/my vol/file'; echo one >'/run/top/my vol/inside/file'; echo x >/run/top/untouched/file

for volume in datavg/logs datavg/data partvg/vol thinvg/vol; do sum $volume /dev/$volume; done
sum btrfs '/run/top/my vol/file'
shadow datavg logs 1 12; shadow datavg data 2 12; shadow partvg vol 1 12
quiet lvm lvcreate -qq -y -s -n umbra_\${SET}_1 $(tags vol) thinvg/vol
mkdir /run/top/.umbra-$SET; quiet btrfs subvolume snapshot -r '/run/top/my vol' "/run/top/.umbra-$SET/my vol"

for volume in datavg/logs datavg/data partvg/vol thinvg/vol thinvg/other; do scribble /dev/$volume 24; done
sum thinvg/other /dev/thinvg/other
head -c 100000 /dev/urandom >'/run/top/my vol/file'; echo two >'/run/top/my vol/inside/file'; sync
for volume in datavg/logs datavg/data partvg/vol; do sum now:$volume /dev/$volume; done
`

/** What the disks hold after a revert, with what LVM says of them. */
export const lookScript = (name: string) => `
F=$(disk ${name}-btrfs)
for serial in a b part thin; do disk ${name}-$serial >/dev/null; done
${guestLvm}
for group in datavg partvg thinvg; do lvm vgck $group || exit 1; done
quiet lvm vgchange -qq -ay -K
lvm lvs --noheadings -o vg_name,lv_name,lv_tags | sort | sed 's/^ */lv /; s/ *$//'
for volume in datavg/logs datavg/data partvg/vol thinvg/vol thinvg/other; do sum $volume /dev/$volume; done
dmsetup status thinvg-pool-tpool | sed 's/^/pool /'
mkdir -p /run/top /run/default; mount -t btrfs -o subvolid=5 $F /run/top || exit 1
mount -t btrfs $F /run/default && ls /run/default | sed 's/^/default /'
sum btrfs '/run/top/my vol/file'; echo "inside $(cat '/run/top/my vol/inside/file')"
ls -A /run/top | sed 's/^/top /'; btrfs subvolume list /run/top | wc -l | sed 's/^/subvolumes /'
touch '/run/top/my vol/writable' && echo writable
umount /run/default /run/top; btrfs check --readonly $F >/run/check 2>&1 && echo 'btrfs is clean' || cat /run/check
`

/** The running guest gets copies of its disks beside the originals and reverts them; nothing of the originals moves. */
export const besideScript = `
A=$(disk orig-a) B=$(disk orig-b) P=$(disk orig-part) T=$(disk orig-thin) F=$(disk orig-btrfs)
for serial in a b part thin btrfs; do disk copy-$serial >/dev/null; done
lvm() {
  command lvm "$@" --config "global { thin_check_executable=\\"\\" system_id_source=\\"lvmlocal\\" }
    local { system_id=\\"the-guest\\" } devices { filter=[\\"a|^$A$|\\",\\"a|^$B$|\\",\\"a|^\${P}1$|\\",\\"a|^$T$|\\",\\"r|.*|\\"] }"
}
quiet lvm vgchange -qq -ay
mkdir -p /run/top; mount -t btrfs -o subvolid=5 $F /run/top || exit 1
mkdir -p /run/udev/rules.d
all() {
  for volume in datavg/logs datavg/data partvg/vol thinvg/vol thinvg/other; do sum $1:$volume /dev/$volume; done
  sum $1:btrfs '/run/top/my vol/file'; echo "$1:dm $(dmsetup ls | sort | md5sum)"; grep -c . /proc/mounts | sed "s/^/$1:mounts /"
}
all before
start=$(cut -d. -f1 /proc/uptime)
umbra-revert $SET copy-a copy-b copy-part copy-thin copy-btrfs || echo "FAILED with $?"
echo "took $(($(cut -d. -f1 /proc/uptime) - start)) s"
echo 3 >/proc/sys/vm/drop_caches
all after
ls -A /run /run/udev/rules.d | tr '\\n' ' ' | sed 's/^/left /'; echo
`
