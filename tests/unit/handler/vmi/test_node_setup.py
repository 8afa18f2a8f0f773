"""Failing interfaces of a running VM are deferred."""

import pytest

from handler.pod_network.interface_request import InterfaceRequest
from handler.secondary_networks.attachments import AttachmentFailed
from handler.vmi.node_setup import _set_aside

REQUESTS = [InterfaceRequest("default"), InterfaceRequest("blue", "pod1"), InterfaceRequest("red", "pod2")]
BLUE = AttachmentFailed({"pod1": "no such definition"}, {"pod2": "hyperlet"})


def test_failed_new_nic_of_running_vm_is_deferred():
    assert _set_aside(BLUE, REQUESTS, ("default", "red")) == {"blue": "no such definition"}
    assert BLUE.makers == {"pod2": "hyperlet"} and str(BLUE) == "no such definition"


@pytest.mark.parametrize("used", [None, ("default", "blue")])
def test_failed_nic_of_starting_vm_or_in_use_raises(used):
    with pytest.raises(AttachmentFailed):
        _set_aside(BLUE, REQUESTS, used)


def test_failed_detach_does_not_block_nics():
    assert _set_aside(AttachmentFailed({"pod9": "DEL failed"}, {}), REQUESTS, ("default",)) == {"pod9": "DEL failed"}
