"""`netstat` in net-tools' words: tests/data/netstat.json.gz holds what netstat 2.10 printed for made-up /proc/net files, with their counters."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import ustack
from ustack.observe import netstat
from ustack.observe.ss import Where

CASES = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "netstat.json.gz").read_bytes()))
HIDDEN = {"IpDefaultTTL", "TcpRtoAlgorithm", "TcpRtoMin", "TcpRtoMax", "TcpMaxConn"}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['args']}-{min(c['counters'].values())}")
def test_statistics_are_net_tools_bytes(case: dict[str, Any]) -> None:
    counters = {k: v for k, v in case["counters"].items() if k not in HIDDEN}
    assert netstat.statistics(counters, netstat.parse(case["args"])) == case["text"]


def test_a_stack_has_every_counter_that_netstat_has_words_for() -> None:
    with ustack.Stack(None, "192.0.2.1/24", clock=ustack.VirtualClock()) as stack:
        assert netstat._WORDS.keys() <= netstat.counters(stack).keys()
        assert "    0 packet headers predicted\n" in stack.netstat("-s")
        assert stack.netstat("-s").startswith("Ip:\n    Forwarding: 2\n")


ROW = {"kind": "sock", "state": 1, "recvq": 3, "sendq": 7, "laddr": "192.0.2.1", "lport": 80, "faddr": "192.0.2.2", "fport": 50000, "timer": "on",
       "timer_expires_ns": 464_000_000, "retrans": 1, "info": b"\1\0\1\2" + bytes(228), "uid": 0, "handle": 2353583, "owned": True}
LISTENER = {**ROW, "kind": "listen", "state": 10, "recvq": 2, "sendq": 128, "faddr": "0.0.0.0", "fport": 0, "timer": None, "info": bytes(232)}
REQUEST = {"kind": "req", "state": 3, "recvq": 0, "sendq": 0, "laddr": "192.0.2.1", "lport": 80, "faddr": "192.0.2.2", "fport": 50001, "timer": "on",
           "timer_expires_ns": 1_990_000_000, "retrans": 0, "num_timeout": 1}


@pytest.mark.parametrize("flags, lines", [
    ("ant", ["Active Internet connections (servers and established)",
             "Proto Recv-Q Send-Q Local Address           Foreign Address         State      ",
             "tcp        2      0 192.0.2.1:80            0.0.0.0:*               LISTEN     ",
             "tcp        3      7 192.0.2.1:80            192.0.2.2:50000         ESTABLISHED",
             "tcp        0      0 192.0.2.1:80            192.0.2.2:50001         SYN_RECV   "]),
    ("lt", ["Active Internet connections (only servers)",
            "Proto Recv-Q Send-Q Local Address           Foreign Address         State      ",
            "tcp        2      0 192.0.2.1:http          0.0.0.0:*               LISTEN     "]),
    ("ntpeo", [
        "Active Internet connections (w/o servers)",
        "Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode      PID/Program name     Timer",
        "tcp        3      7 192.0.2.1:80            192.0.2.2:50000         ESTABLISHED 0          2353583    77/python3           on (0.46/1/2)",
        "tcp        0      0 192.0.2.1:80            192.0.2.2:50001         SYN_RECV    0          0          -                    on (1.99/1/0)"]),
])
def test_socket_table(flags: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netstat, "service_name", {80: "http"}.get)
    assert netstat.sockets([ROW, REQUEST, LISTENER], set(flags), Where("python3", 77)) == "\n".join(lines) + "\n"


def test_what_is_not_understood() -> None:
    for args in ("-q", "--tcp", "tcp", "-i"):
        with pytest.raises(ValueError):
            netstat.parse(args)
