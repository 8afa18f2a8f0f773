"""Strings that users and guests choose, on their way to nft, XML, logs and paths."""

import io
import json
import logging
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import Any
from xml.etree import ElementTree

import pytest
import structlog

from api.errors import NetworkError
from handler.pod_network import nftables
from kit import log
from launcher.domain import types

EVIL = ['eth0" drop', "a\nb", "x;flush", "a{b", "$x", "a b", "-", ".", "", "x" * 16, "é"]


@pytest.mark.parametrize("name", EVIL)
def test_a_device_name_that_is_more_than_a_word_never_reaches_nft(name: str) -> None:
    family = nftables.IpFamily(
        IPv4Address("10.0.2.2"), IPv4Address("10.0.2.1"), IPv4Network("10.0.2.0/24"), (IPv4Address("10.1.1.5"),)
    )
    with pytest.raises(NetworkError):
        nftables.MasqueradeRules(name, "k6t-eth0", (family,))
    with pytest.raises(NetworkError):
        nftables.MasqueradeRules("eth0", name, (family,))
    nftables.MasqueradeRules("net1.100", "k6t-eth0", (family,))


@pytest.mark.parametrize("text", ['"/><disk type="file"><source file="/etc/shadow"/></disk>', "a&b", "]]>", "a'b"])
def test_a_string_stays_a_string_in_the_domain(text: str) -> None:
    written = types.Os(machine=text, kernel=text, cmdline=text).text()
    read = ElementTree.fromstring(written)
    assert read.findtext("cmdline") == text and read.find("type").get("machine") == text  # type: ignore[union-attr]
    assert not list(read.iter("disk"))


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ufffe", "\ud800"])
def test_what_xml_cannot_hold_is_refused(character: str) -> None:
    with pytest.raises(ValueError):
        types.Os(machine="q35", cmdline=f"a{character}b").text()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the process logs, line by line, with logging set up as the daemons do."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    log.setup("handler", "debug")
    yield lambda: stream.getvalue().splitlines()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


FORGED = 'x\n{"level":"info","msg":"All is well"}\r\n\x1b[2J\x00'


def test_a_log_line_stays_one_line_whatever_is_in_it(lines: Any) -> None:
    log.logger(component="launcher").warning("The launcher ended", why=FORGED, **{"odd\nkey": FORGED})
    (line,) = lines()
    assert json.loads(line)["why"] == FORGED and "\x1b" not in line


def test_a_string_that_is_no_utf8_does_not_stop_the_work(lines: Any) -> None:
    log.logger().warning("No such file", path="\udcff")
    (line,) = lines()
    assert json.loads(line)["path"] == "\udcff"


def test_a_librarys_log_line_stays_one_line_too(lines: Any) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("grpc").exception("The peer said %s", FORGED)
    (line,) = lines()
    said = json.loads(line)
    assert FORGED in said["msg"] and "ValueError" in said["exception"] and said["logger"] == "grpc"
    assert "\x1b" not in line
