"""Interfaces of a VM that runs are plugged in one by one: what is missing for one is set aside."""

import pytest

from handler.pod_network.interface_request import InterfaceRequest
from handler.secondary_networks.attachments import AttachmentFailed
from handler.vmi.node_setup import _set_aside

REQUESTS = [InterfaceRequest("default"), InterfaceRequest("blue", "pod1"), InterfaceRequest("red", "pod2")]
BLUE = AttachmentFailed({"pod1": "no such definition"}, {"pod2": "hyperlet"})


def test_a_card_that_the_guest_does_not_have_yet_waits():
    assert _set_aside(BLUE, REQUESTS, ("default", "red")) == {"blue": "no such definition"}
    assert BLUE.makers == {"pod2": "hyperlet"} and str(BLUE) == "no such definition"


@pytest.mark.parametrize("used", [None, ("default", "blue")])
def test_a_vm_that_starts_and_a_card_that_is_in_use_cannot_do_without(used):
    with pytest.raises(AttachmentFailed):
        _set_aside(BLUE, REQUESTS, used)


def test_a_network_that_cannot_be_left_keeps_no_card_away():
    assert _set_aside(AttachmentFailed({"pod9": "DEL failed"}, {}), REQUESTS, ("default",)) == {"pod9": "DEL failed"}
