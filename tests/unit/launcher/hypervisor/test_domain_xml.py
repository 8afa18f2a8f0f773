"""libvirt 9's own words for a running domain, shortened."""

import pytest

from launcher.domain import nics
from launcher.hotplug.live_nics import ALIAS, MOST, LiveNic, with_link
from launcher.hypervisor.domain_xml import describe
from launcher.hypervisor.xml_events import MAX_BYTES, InvalidXml

DOMAIN = """\
<domain type='qemu' id='1'>
  <name>test_vm</name>
  <metadata>
    <hyperlet:vmi xmlns:hyperlet="urn:hyperlet:vmi:1" namespace="test" name="vm" uid="uid-1"/>
  </metadata>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0' multifunction='on'/>
    </controller>
    <controller type='pci' index='2' model='pcie-root-port'/>
    <controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='pci' index='4' model='pcie-root-port'/>
    <controller type='pci' index='17' model='pcie-root-port'/>
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
    <channel type='unix'>
      <source mode='bind' path='/run/agent.sock'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <alias name='channel0'/>
      <address type='virtio-serial' controller='0' bus='0' port='1'/>
    </channel>
    <video>
      <model type='vga' vram='16384' heads='1' primary='yes'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0'/>
    </video>
    <interface type='user'>
      <mac address='02:00:00:00:00:09'/>
      <alias name='net3'/>
    </interface>
  </devices>
</domain>
"""


def live_nics(devices: str) -> tuple[LiveNic, ...]:
    return describe(f"<domain><devices>{devices}</devices></domain>").nics


def test_nics_with_our_alias_are_parsed() -> None:
    found = describe(DOMAIN).nics
    assert [(nic.name, nic.mac, nic.link_up, nic.queues, nic.model) for nic in found] == [
        ("default", "02:00:00:00:00:01", True, 4, "virtio"),
        ("second", "02:00:00:00:00:02", False, 1, "e1000e"),
        ("fast", "", True, 1, "sriov"),
    ]
    assert describe("<domain/>").nics == ()


def test_description_of_a_domain() -> None:
    found = describe(DOMAIN)
    assert (found.accelerator, found.machine, found.agent_connected) == ("tcg", "pc-q35-7.2", True)
    assert (found.free_ports, found.has_screen) == (2, True), "ports 4 and 17 are free"
    kvm = describe(DOMAIN.replace("type='qemu'", "type='kvm'").replace("'connected'", "'disconnected'"))
    assert (kvm.accelerator, kvm.agent_connected) == ("kvm", False)
    bare = describe("<domain type='qemu'/>")
    assert (bare.machine, bare.agent_connected, bare.free_ports, bare.has_screen) == ("", False, 0, False)
    assert not describe("<domain><devices><video><model type='none'/></video></devices></domain>").has_screen


def test_layout_and_quotation_marks_do_not_matter() -> None:
    """What the text looks like is up to libvirt's version."""
    flat = DOMAIN.replace("\n", " ").replace("'", '"').replace("/>", " />").replace("</interface>", "</interface\t>")
    assert [(nic.name, nic.mac, nic.link_up) for nic in describe(flat).nics] == [
        (nic.name, nic.mac, nic.link_up) for nic in describe(DOMAIN).nics
    ]
    assert describe(flat).nics[0].xml.startswith('<interface type="ethernet">')
    assert describe(flat).nics[0].xml.endswith("</interface\t>")


def test_text_that_looks_like_elements_is_no_element() -> None:
    """A title or metadata of the user, which libvirt repeats with entities or in a namespace of its own."""
    text = DOMAIN.replace("<name>", "<title>&lt;interface>&lt;alias name='ua-nic_evil'/>&lt;/interface></title><name>")
    hidden = "<devices><interface><alias name='ua-nic_evil'/></interface></devices>"
    text = text.replace("</metadata>", f"<x:a xmlns:x='urn:x'>{hidden}</x:a><!-- {hidden} --></metadata>")
    assert [nic.name for nic in describe(text).nics] == ["default", "second", "fast"]


def test_alias_prefix_matches_the_builder() -> None:
    assert ALIAS == nics.ALIAS


def test_number_of_nics_is_limited() -> None:
    first = describe(DOMAIN).nics[0].xml
    assert len(live_nics(first * 100)) == MOST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no XML",
        "<domain><devices></domain>",
        "<domain>" + " " * MAX_BYTES + "</domain>",
        "<!DOCTYPE domain [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
    ],
)
def test_unusable_xml_is_refused(text: str) -> None:
    with pytest.raises(InvalidXml, match=r"^libvirt's XML "):
        describe(text)


def test_nics_of_a_domain_with_other_characters_have_exact_xml() -> None:
    text = DOMAIN.replace("<name>", "<description>größer 🖥</description><name>")
    assert [nic.xml for nic in describe(text).nics] == [nic.xml for nic in describe(DOMAIN).nics]


def test_with_link_sets_link_state() -> None:
    default, second, _ = describe(DOMAIN).nics
    down = with_link(default, up=False)
    assert [nic.link_up for nic in live_nics(down)] == [False]
    assert down.replace('<link state="down" />', "").replace('"', "'").replace(" />", "/>") == default.xml
    assert [nic.link_up for nic in live_nics(with_link(second, up=True))] == [True]
    assert with_link(second, up=False).count("<link ") == 1


def test_with_link_keeps_special_characters() -> None:
    (nic,) = live_nics("<interface><alias name='ua-nic_a'/><source dev='&lt;&amp;&quot;&apos;>'/></interface>")
    assert live_nics(with_link(nic, up=False))[0].link_up is False
    assert "&lt;&amp;&quot;'&gt;" in with_link(nic, up=True)
