"""Router advertisements on the wire."""

import ipaddress

from handler.pod_network import router_advertiser


def test_router_advertisement():
    message = router_advertiser.advertisement(ipaddress.IPv6Interface("fd10:0:2::1/120"), "02:00:00:00:00:01", 1400)
    assert message[:2] == b"\x86\x00" and message[5] == 0xC0 and message[6:8] == b"\xff\xff"
    assert message[16:24] == b"\x01\x01\x02\x00\x00\x00\x00\x01"
    assert message[24:32] == b"\x05\x01\x00\x00\x00\x00\x05\x78"
    assert message[32:36] == b"\x03\x04\x78\x80" and message[48:] == ipaddress.ip_address("fd10:0:2::").packed
