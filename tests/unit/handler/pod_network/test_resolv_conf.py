"""DNS settings read from resolv.conf."""

from hypothesis import given
from hypothesis import strategies as st

from handler.pod_network import resolv_conf


def test_resolver():
    found = resolv_conf.parse(
        "# comment\nnameserver 10.96.0.10\nnameserver 127.0.0.53\nnameserver ::1\nnameserver fd00::53\n"
        "nameserver fe80::1%eth0\nnameserver 169.254.20.10\nnameserver 10.96.0.10\nnameserver $(x)\n"
        "search a.svc.cluster.local svc.cluster.local -bad- a..b x;y\noptions ndots:5\n"
    )
    assert [str(server) for server in found.servers4] == ["10.96.0.10", "169.254.20.10"]
    assert [str(server) for server in found.servers6] == ["fd00::53"]
    assert found.search == ("a.svc.cluster.local", "svc.cluster.local")


@given(st.text(max_size=2000))
def test_any_resolver_is_bounded(text):
    found = resolv_conf.parse(text)
    assert len(found.servers4) + len(found.servers6) <= 8 and len(found.search) <= 32


def test_many_servers_and_domains_are_bounded():
    text = (
        "".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 200)) + "search " + " ".join(f"d{n}" for n in range(999))
    )
    found = resolv_conf.parse(text)
    assert (len(found.servers4), len(found.search)) == (8, 32)
