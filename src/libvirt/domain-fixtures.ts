/**
 * Domain XML for tests, written as libvirt 9 writes it: every kind of disk, a firmware with variables, a TPM, NICs, a
 * foreign namespace, a comment, and what only the XML of a running VM has (libvirt docs, "Domain XML format").
 */

export const richDomain = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>shop &amp; mail</name>
  <uuid>6BA7B810-9dad-11d1-80b4-00c04fd430c8</uuid>
  <title>  padded  </title>
  <metadata>
    <app:origin xmlns:app="http://example.org/app/1.0" id="02"><app:name>not &lt;the&gt; name</app:name></app:origin>
  </metadata>
  <!-- kept by hand: see the wiki -->
  <memory unit='KiB'>2097152</memory>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/vm/shop/root.qcow2'/>
      <target dev='vda' bus='virtio'/>
      <serial>shop-vda</serial>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='block' device='lun' rawio='yes'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/disk/by-id/wwn-0x5000'/>
      <target dev='sda' bus='scsi'/>
      <shareable/>
      <address type='drive' controller='0' bus='0' target='0' unit='3'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='data A'>
        <host transport='unix' socket='/run/nbd.sock'/>
      </source>
      <target dev='sdb' bus='scsi'/>
      <address type='drive' controller='1' bus='0' target='0' unit='3'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/images/mail'>
        <host name='mon1' port='6789'/>
        <host name='mon2'/>
        <auth username='umbra'><secret type='ceph' uuid='aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee'/></auth>
        <config file='/etc/ceph/ceph.conf'/>
      </source>
      <target dev='sdc' bus='scsi'/>
      <transient/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='iscsi' name='iqn.2020-01.org.example:disk/1'><host name='storage' port='3260'/></source>
      <target dev='sdd' bus='scsi'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/vm/shop/secret.luks'>
        <encryption format='luks'><secret type='passphrase' uuid='aaaaaaaa-bbbb-cccc-dddd-ffffffffffff'/></encryption>
      </source>
      <target dev='sde' bus='scsi'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/>
      <source pool='tank' volume='v1'/>
      <target dev='sdf' bus='scsi'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/vm/shop/untold.img'/>
      <target dev='sdg' bus='scsi'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sdh' bus='sata'/>
      <readonly/>
    </disk>
    <controller type='scsi' index='0' model='virtio-scsi'>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </controller>
    <controller type='scsi' index='1' model='virtio-scsi'>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </controller>
    <interface type='network'>
      <mac address='52:54:00:AA:bb:01'/>
      <source network='default' portgroup='web'/>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:aa:bb:02'/>
      <source bridge='br0'/>
      <virtualport type='openvswitch'/>
      <model type='e1000'/>
    </interface>
    <interface type='user'>
      <mac address='52:54:00:aa:bb:03'/>
    </interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <hostdev mode='subsystem' type='usb' managed='yes'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>
    <hostdev mode='subsystem' type='scsi' managed='no'>
      <source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source>
    </hostdev>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source>
    </hostdev>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value='x &quot;y&quot; &lt;z>'/>
  </qemu:commandline>
</domain>
`

/** A running VM whose disk lies on an overlay, on a base, on a template; a commit is under way. */
export const liveDomain = `<domain type='kvm' id='7'>
  <name>web</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/vm/web/root.overlay' index='4'/>
      <backingStore type='file' index='3'>
        <format type='qcow2'/>
        <source file='/vm/web/root.qcow2'/>
        <backingStore type='network' index='2'>
          <format type='raw'/>
          <source protocol='nbd' name='template'><host name='images' port='10810'/></source>
          <backingStore/>
        </backingStore>
      </backingStore>
      <mirror type='file' job='active-commit' ready='yes'>
        <format type='qcow2'/>
        <source file='/vm/web/root.qcow2'/>
      </mirror>
      <target dev='sda' bus='scsi'/>
      <alias name='scsi0-0-0-0'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default' portid='99999999-2222-3333-4444-555555555555' bridge='virbr0'/>
      <target dev='vnet3'/>
      <alias name='net0'/>
    </interface>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <alias name='ua-mine'/>
    </channel>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+0:+0</label></seclabel>
</domain>
`
