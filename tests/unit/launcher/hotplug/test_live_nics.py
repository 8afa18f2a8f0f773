"""libvirt 9's own words for a running domain, shortened."""

from launcher.domain import nics
from launcher.hotplug import live_nics

DOMAIN = """\
<domain type='qemu' id='1'>
  <name>test_vm</name>
  <metadata>
    <hyperlet:vmi xmlns:hyperlet="urn:hyperlet:vmi:1" namespace="test" name="vm" uid="uid-1"/>
  </metadata>
  <devices>
    <disk type='file' device='disk'>
      <alias name='ua-default'/>
    </disk>
    <interface type='ethernet'>
      <mac address='02:00:00:00:00:01'/>
      <target dev='tap0' managed='no'/>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <mtu size='1450'/>
      <alias name='ua-nic_default'/>
      <rom enabled='no'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='ethernet'>
      <mac address='02:00:00:00:00:02'/>
      <target dev='tap1' managed='no'/>
      <model type='e1000e'/>
      <link state='down'/>
      <alias name='ua-nic_second'/>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </interface>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <driver name='vfio'/>
      <source>
        <address domain='0x0000' bus='0x81' slot='0x01' function='0x2'/>
      </source>
      <alias name='ua-nic_fast'/>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </hostdev>
    <interface type='user'>
      <mac address='02:00:00:00:00:09'/>
      <alias name='net3'/>
    </interface>
  </devices>
</domain>
"""


def test_nics_with_our_alias_are_parsed() -> None:
    found = live_nics.live_nics(DOMAIN)
    assert [(nic.name, nic.mac, nic.link_up, nic.queues, nic.model) for nic in found] == [
        ("default", "02:00:00:00:00:01", True, 4, "virtio"),
        ("second", "02:00:00:00:00:02", False, 1, "e1000e"),
        ("fast", "", True, 1, "sriov"),
    ]
    assert live_nics.live_nics("<domain/>") == ()


def test_alias_prefix_matches_the_builder() -> None:
    assert live_nics.ALIAS == nics.ALIAS


def test_number_of_nics_is_limited() -> None:
    first = live_nics.live_nics(DOMAIN)[0].xml
    assert len(live_nics.live_nics("<devices>\n" + first * 100)) == live_nics.MOST


def test_with_link_sets_link_state() -> None:
    default, second, _ = live_nics.live_nics(DOMAIN)
    down = live_nics.with_link(default, up=False)
    assert [nic.link_up for nic in live_nics.live_nics(down)] == [False]
    assert down.replace("      <link state='down'/>\n", "") == default.xml
    assert [nic.link_up for nic in live_nics.live_nics(live_nics.with_link(second, up=True))] == [True]
    assert live_nics.with_link(second, up=False).count("<link ") == 1
