"""The listen path as hping3, nmap and kernel clients see it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import STACK, TunLab
from ustack import PcapLink, Stack
from ustack.links.pcap import read_packets

root = pytest.mark.root


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def until(what: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def clients(lab: TunLab, n: int, port: int = 80, pause: float = 0.02) -> Iterator[list[socket.socket]]:
    """n kernel sockets that have begun to connect, one after the other."""
    socks = []
    with lab.ns.inside():
        for _ in range(n):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((STACK, port))
            socks.append(sock)
            time.sleep(pause)
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def states(lab: TunLab, port: int = 80) -> Counter[str]:
    """The states of the kernel's own sockets towards the stack."""
    rows = lab.ns.run("ss", "-tanH", "dst", f"{STACK}:{port}").stdout.decode().splitlines()
    return Counter(row.split()[0] for row in rows)


@root
def test_eight_clients_at_a_listener_of_four(lab: TunLab) -> None:
    """As measured on Linux: five in the accept queue, three clients still in SYN-SENT, none half open."""
    stack = lab.stack()
    with stack.create_server((STACK, 80), backlog=4) as server, clients(lab, 8):
        assert until(lambda: states(lab)["ESTAB"] == 5)
        row = stack.ss("-ltn")[0]
        assert (row["recvq"], row["sendq"]) == (5, 4)
        assert states(lab) == {"ESTAB": 5, "SYN-SENT": 3}
        assert stack.requests(server) == []
        seen = stack.nstat()
        assert (seen["TcpExtListenOverflows"], seen["TcpExtListenDrops"]) == (3, 3)
        assert stack.drops()["TCP_LISTEN_OVERFLOW"] == 3
        server.accept()[0].close()
        assert until(lambda: states(lab)["ESTAB"] + states(lab)["CLOSE-WAIT"] >= 6), "a retransmitted SYN takes the free place"


@root
def test_eight_at_once_are_cookies_beyond_the_fifth(lab: TunLab) -> None:
    """All SYNs before the first third ACK: what the request queue does not hold gets a cookie, and is too many when its ACK comes."""
    stack = lab.stack()
    with stack.create_server((STACK, 80), backlog=4), clients(lab, 8, pause=0):
        assert until(lambda: stack.nstat().get("TcpExtListenOverflows", 0) == 3)
        assert stack.ss("-ltn")[0]["recvq"] == 5


@root
def test_abort_on_overflow_resets(lab: TunLab) -> None:
    """The third ACK finds the queue full: with tcp_abort_on_overflow the client hears it."""
    stack = lab.stack(sysctl={"net.ipv4.tcp_abort_on_overflow": 1})
    with stack.create_server((STACK, 80), backlog=0), clients(lab, 2) as socks:
        assert until(lambda: stack.ss("-ltn")[0]["recvq"] == 1)
        assert until(lambda: sum(states(lab).values()) <= 2)
        assert len(socks) == 2


@root
@needs("hping3")
def test_hping_s_syns_are_answered(lab: TunLab) -> None:
    """hping3 leaves a random number in the acknowledgement field of its SYNs: it means nothing without the flag."""
    stack = lab.stack()
    with stack.create_server((STACK, 80), backlog=128):
        run = lab.ns.run("hping3", "-q", "-S", "-p", "80", "-c", "20", "-i", "u2000", STACK)
        assert b"20 packets transmitted, 20 packets received" in run.stderr + run.stdout
        assert "TcpPassiveOpens" not in stack.nstat()
        # The kernel answers each SYN-ACK with a reset, so nothing is left half open.
        assert until(lambda: stack.pools()["requests"] == 0)


@root
@needs("hping3")
@pytest.mark.parametrize("cookies", [0, 1, 2])
def test_a_flood_from_forged_addresses(lab: TunLab, tmp_path: Path, cookies: int) -> None:
    """3,000 SYNs nobody answers for: the queue stops at backlog + 1, what is beyond becomes cookies or is dropped, each counted once."""
    stack = lab.stack(sysctl={"net.ipv4.tcp_syncookies": cookies})
    with stack.create_server((STACK, 80), backlog=64) as server:
        for host in range(1, 4):
            lab.ns.run("hping3", "-q", "-S", "-p", "80", "-c", "1000", "-i", "u100", "-a", f"203.0.113.{host}", STACK)
        until(lambda: stack._driver.counters()["rx_packets"] >= 3000, 2)
        seen, drops = stack.nstat(), stack.drops()
        half_open = len(stack.requests(server))
        asked = seen["TcpInSegs"]
        assert asked >= 2900
        if cookies == 0:
            assert half_open <= 65
            assert seen["TcpExtTCPReqQFullDrop"] == seen["TcpExtListenDrops"] == drops["TCP_REQQFULL_DROP"]
            assert seen["TcpExtTCPReqQFullDrop"] + 65 >= asked - 10
        elif cookies == 1:
            assert half_open <= 65
            assert seen["TcpExtSyncookiesSent"] == seen["TcpExtTCPReqQFullDoCookies"]
        else:
            assert half_open == 0
            assert seen["TcpExtSyncookiesSent"] == asked
        # An honest client is served in the middle of it, unless cookies are off.
        if cookies:
            with clients(lab, 1), server.accept()[0] as conn:
                assert conn.getpeername()[0] == "192.0.2.1"
            assert stack.nstat()["TcpExtSyncookiesRecv"] == 1


@root
@needs("nmap")
def test_nmap_finds_the_open_port(lab: TunLab) -> None:
    stack = lab.stack()
    with stack.create_server((STACK, 80)):
        for kind in ("-sS", "-sT"):
            out = lab.ns.run("nmap", "-n", "-Pn", kind, "-p", "79-81", STACK).stdout.decode()
            assert "80/tcp open" in out
            assert out.count("closed") == 2
        out = lab.ns.run("nmap", "-n", "-Pn", "-sF", "-p", "79-80", STACK).stdout.decode()
        assert "79/tcp closed" in out and "80/tcp open|filtered" in out


@root
@needs("ping")
def test_ping(lab: TunLab) -> None:
    lab.stack()
    for size in ("0", "56", "1400", "4000"):
        out = lab.ns.run("ping", "-q", "-c", "3", "-i", "0.01", "-s", size, "-W", "2", STACK)
        assert b" 0% packet loss" in out.stdout, out.stdout


# ---- captures in real time ---------------------------------------------------------------------------------------------------------
def test_a_capture_through_a_running_stack(tmp_path: Path) -> None:
    """SYNs from a file in, SYN-ACKs into another; no privilege."""
    from tests.unit.test_links_virtual import A, pcap, syn

    packets = [(i * 1_000_000, syn(i)) for i in range(50)]
    link = PcapLink(pcap(tmp_path / "in", packets, nano=True), tmp_path / "out", start=0.3)
    with Stack(link, f"{A}/24") as stack, stack.create_server((A, 80)):
        assert link.done.wait(10)
        assert until(lambda: stack.nstat().get("TcpOutSegs", 0) == 50)
        until(lambda: stack._driver.counters()["tx_packets"] >= 50)
    with (tmp_path / "out").open("rb") as file:
        answers = list(read_packets(file))
    assert len(answers) >= 50
    assert {packet[33] for _, packet in answers} == {0x12}
    assert abs(answers[0][0] - time.time_ns()) < 60e9
    assert answers[49][0] - answers[0][0] > 40e6, "in real time"
