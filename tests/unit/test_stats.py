"""Counter names and order: one list for numbers and names, and the names are the kernel's."""

import re
from pathlib import Path

import pytest

from .door import ct

TYPES = Path(__file__).parents[2] / "ustack" / "core" / "types.pxd"
CONSTANTS = {"IpForwarding", "IpDefaultTTL", "TcpRtoAlgorithm", "TcpRtoMin", "TcpRtoMax", "TcpMaxConn"}


def test_numbers_as_the_core_sees_them_are_positions_in_the_table():
    names = ct.mib_names()
    assert {name: names.index(name) for name in ct.mib_known()} == ct.mib_known()


def test_names_are_unique_and_grouped_in_the_kernels_order():
    names = ct.mib_names()
    assert len(set(names)) == len(names)
    groups = [re.match("IpExt|TcpExt|UdpLite|Ip|Icmp|Tcp|Udp", name)[0] for name in names]
    assert list(dict.fromkeys(groups)) == ["Ip", "Icmp", "Tcp", "Udp", "UdpLite", "TcpExt", "IpExt"]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)
    assert not CONSTANTS & set(names)


def test_names_outside_the_tables():
    assert ct.name_outside(-1) == (True, True)
    assert ct.name_outside(len(ct.mib_names())) == (True, True)


def test_drop_names_follow_the_enum_in_types():
    enum = dict(re.findall(r"^    DROP_(\w+) = (\d+)", TYPES.read_text(), re.M))
    assert int(enum.pop("REASONS")) == ct.DROP_REASONS == len(enum)
    assert [int(v) for v in enum.values()] == list(range(len(enum)))
    assert ct.drop_names() == list(enum)


def kernel_names():
    names = []
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        lines = Path(path).read_text().splitlines()
        for line in lines[::2]:
            group, *fields = line.split()
            if group not in ("IcmpMsg:", "MPTcpExt:"):
                names += [group[:-1] + f for f in fields]
    return [n for n in names if n not in CONSTANTS]


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/osrelease").exists()
    or not Path("/proc/sys/kernel/osrelease").read_text().startswith("6.18."),
    reason="the table is Linux 6.18's; another kernel has other counters",
)
def test_table_equals_the_running_kernels():
    assert ct.mib_names() == kernel_names()


def test_counting():
    s = ct.Stats()
    level = ct.mib_known()["TcpCurrEstab"]
    for _ in range(3):
        s.inc(level)
    s.dec(level)
    s.add(0, 1500)
    s.drop(26)
    assert (s.mib()[level], s.mib()[0], sum(s.mib())) == (2, 1500, 1502)
    assert s.drops()[26] == sum(s.drops()) == 1
