/**
 * Disks of a guest with every file system and layout that `umbra files` reads, filled by a real kernel (helper-vm-scene.ts), which
 * then loses its power: what was written last stands in the journals only.
 */
import { execFile } from 'node:child_process'
import { chmod, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { createImage } from '../../src/libvirt/disk-image.ts'
import type { HelperVmImages } from '../../src/libvirt/helper-vm-images.ts'
import { runInKernel, type SceneDisk } from './helper-vm-scene.ts'

const run = promisify(execFile)
const mebibyte = 1024 * 1024
const project = join(import.meta.dirname, '..', '..')

export const sceneUuid = '6c9e1a7e-5a0b-4c53-9a55-0f1c2d3e4f50'

/** A guest's kernel fills these, and prints what it knows of them. */
const script = (mkntfs: string) => `
A=$(disk vda) X=$(disk vdb) B=$(disk vdc) N=$(disk vdd)
modprobe -a xfs vfat nls_cp437 nls_ascii fuse
tree() { # DIRECTORY
  mkdir -p "$1/etc/sub" "$1/deep/er"
  printf 'guest-%s\\n' "$2" >$1/etc/hostname
  head -c 3000001 /dev/urandom >"$1/etc/sub/random.conf"
  sum "$2" "$1/etc/sub/random.conf"
}
special() { # DIRECTORY
  chown 12:34 $1/etc/hostname; chmod 4640 $1/etc/hostname
  ln $1/etc/hostname $1/etc/name-too
  ln -s /etc/hostname $1/etc/absolute; ln -s ../etc $1/deep/relative; ln -s nowhere $1/etc/dangling
  ln -s ../../../../../../../../tmp $1/etc/out; ln -s loop $1/etc/loop
  mkfifo $1/etc/fifo; mknod $1/etc/device c 1 5
  printf odd >"$1/etc/$(printf 'new\\nline\\377\\001x')"
  dd if=/dev/urandom of=$1/etc/sparse bs=4096 count=1 seek=0 2>/dev/null
  dd if=/dev/urandom of=$1/etc/sparse bs=4096 count=1 seek=40000 conv=notrunc 2>/dev/null
  truncate -s 300000000 $1/etc/sparse
  long=$(printf 'n%.0s' $(seq 1 250)); mkdir -p $1/deep/$long/$long; echo long >$1/deep/$long/$long/file
  /sbin/find $1/etc/hostname -printf 'time %T@\\n'
}
printf 'n\\np\\n1\\n2048\\n133119\\nn\\np\\n2\\n133120\\n215039\\nn\\np\\n3\\n215040\\n\\nw\\n' | fdisk $A >/dev/null 2>&1
mkdir -p /run/m
mount -t ext4 \${A}1 /run/m || exit 1
tree /run/m ext4; special /run/m; sync; cp /run/m/etc/hostname /run/m/journalled; sync /run/m/journalled
quiet mkdosfs -n DATA \${A}2; mkdir /run/f; mount -t vfat -o utf8 \${A}2 /run/f || exit 1
tree /run/f vfat; sync; umount /run/f
quiet lvm pvcreate -qq -y \${A}3; quiet lvm vgcreate -qq -y -s 4m vg0 \${A}3
quiet lvm lvcreate -qq -y -Zn -Wn -L 40m -n data vg0
quiet lvm lvcreate -qq -y -Zn --poolmetadatasize 4m --poolmetadataspare n -c 64k -L 64m -T vg0/pool
quiet lvm lvcreate -qq -y -V 40m -T vg0/pool -n thin
for volume in data thin; do
  quiet mke2fs /dev/vg0/$volume; mkdir /run/$volume; mount -t ext4 /dev/vg0/$volume /run/$volume || exit 1
  tree /run/$volume $volume; sync
done
umount /run/data; umount /run/thin; quiet lvm vgchange -qq -an vg0
mkdir /run/x; mount -t xfs $X /run/x || exit 1
tree /run/x xfs; special /run/x; sync
mkdir /run/b; mount -t btrfs $B /run/b || exit 1
tree /run/b btrfs; quiet btrfs subvolume create /run/b/home; echo hi >/run/b/home/file; sync
${mkntfs === '' ? '' : `quiet mkntfs -F -Q -L WIN $N; mkdir /run/n; ntfs-3g $N /run/n || exit 1; tree /run/n ntfs; sync; umount /run/n; sleep 1`}
`

/** The images and what the kernel said of them. */
export async function guestDisks(images: HelperVmImages, directory: string) {
  const disks: SceneDisk[] = []
  const sizes = { vda: 300, vdb: 304, vdc: 128, vdd: 40 }
  for (const [serial, size] of Object.entries(sizes)) {
    const path = join(directory, `${serial}.raw`)
    await createImage(path, 'raw', size * mebibyte)
    disks.push({ serial, path, format: 'raw' })
  }
  const path = (name: string) => join(directory, `${name}.raw`)
  await run('mkfs.ext4', ['-q', '-F', '-U', sceneUuid, '-L', 'root fs', '-E', `offset=${mebibyte}`, path('vda'), '64M'])
  await run('mkfs.xfs', ['-q', '-L', 'xdata', path('vdb')])
  await run('mkfs.btrfs', ['-q', path('vdc')])
  const mkntfs = await findMkntfs(directory)
  const said = await runInKernel(images, directory, disks, script(mkntfs), mkntfs === '' ? [] : [mkntfs])
  return { disks, said, hasNtfs: mkntfs !== '' }
}

/** Out of the package from which the helper VM's image was made. */
async function findMkntfs(directory: string): Promise<string> {
  const packages = join(project, '.cache', 'debian-packages')
  const name = (await readdir(packages).catch(() => [])).find((one) => /^ntfs-3g_.*\.deb$/.test(one))
  if (name === undefined) return ''
  const out = join(directory, 'mkntfs')
  const { stdout } = await run(
    'sh',
    ['-c', 'dpkg-deb --fsys-tarfile "$1" | tar -xO ./sbin/mkntfs', 'sh', join(packages, name)],
    {
      encoding: 'buffer',
      maxBuffer: 16 * mebibyte,
    },
  )
  await writeFile(out, stdout)
  await chmod(out, 0o755)
  return out
}
