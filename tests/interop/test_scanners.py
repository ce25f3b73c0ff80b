"""What port scanners learn: all 64 combinations of TCP flags, hping3 and nmap, at ustack and at this machine's kernel, have to see the same.

Each side has a prober's namespace of its own with the same addresses: ustack sits behind a TUN device, the kernel in a second namespace behind a
veth pair. Probes come from an address that the prober does not own, so that its own kernel answers nothing (RFC 9293 3.10.7; facts B3, B30, C13, N4).
"""

from __future__ import annotations

import functools
import itertools
import re
import shutil
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from scapy.all import IP, TCP  # type: ignore[attr-defined]

from tests.interop.conftest import KERNEL, STACK, Namespace, TunLab

pytestmark = pytest.mark.root

SCANNER = "192.0.2.77"                              # nobody's: answers to it are seen and not answered
OPEN, CLOSED, FULL, FLOODED = 80, 81, 82, 83        # FULL: no place in the accept queue; FLOODED: none for half-open connections
PORTS = {OPEN: "open", CLOSED: "closed", FULL: "accept queue full", FLOODED: "syn queue full"}
BACKLOG = {OPEN: 128, FULL: 1, FLOODED: 4}
LAST = 9999                                         # source port of the probe that ends a round
SEQ, ACK = 0x10203040, 0x50607080
OPTIONS: dict[str, list[tuple[str, Any]]] = {
    "bare": [],
    "linux": [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (0x01020304, 0)), ("NOP", None), ("WScale", 7)],
}
ETH_P_IP = 0x0800


class Target(Protocol):
    """A listener's host, behind `device` of the prober's namespace `ns`."""

    ns: Namespace
    device: str

    def listen(self, port: int, backlog: int) -> None: ...

    def sysctl(self, name: str, value: int) -> None: ...


class UstackTarget:
    device = "ustack0"

    def __init__(self, lab: TunLab) -> None:
        self.ns = lab.ns
        self.stack = lab.stack()
        self.sockets: list[Any] = []
        lab.ns.ip_ok("link", "set", self.device, "up")

    def listen(self, port: int, backlog: int) -> None:
        self.sockets.append(self.stack.create_server(("0.0.0.0", port), backlog=backlog))

    def sysctl(self, name: str, value: int) -> None:
        self.stack.sysctl[name] = value

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class KernelTarget:
    device = "probe0"

    def __init__(self, prober: Namespace, host: Namespace) -> None:
        self.ns, self.host = prober, host
        self.sockets: list[socket.socket] = []
        prober.ip_ok("link", "add", self.device, "type", "veth", "peer", "name", "host0", "netns", host.name)
        for ns, device, address in ((prober, self.device, KERNEL), (host, "host0", STACK)):
            ns.ip_ok("addr", "add", f"{address}/24", "dev", device)
            ns.ip_ok("link", "set", device, "up")
        mac = re.search(r"link/ether (\S+)", prober.ip_ok("link", "show", self.device))
        assert mac
        host.ip_ok("neigh", "add", SCANNER, "lladdr", mac[1], "dev", "host0", "nud", "permanent")

    def listen(self, port: int, backlog: int) -> None:
        with self.host.inside():
            sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(backlog)
        self.sockets.append(sock)

    def sysctl(self, name: str, value: int) -> None:
        self.host.sysctl(name, value)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class Prober:
    """Sends packets from SCANNER's address and sees what comes back."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.clients: list[socket.socket] = []
        with target.ns.inside():
            self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, target.device.encode())
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._in.bind((target.device, ETH_P_IP))

    def listen_and_fill(self) -> None:
        """The listeners, and what makes two of them full."""
        for port, backlog in BACKLOG.items():
            self.target.listen(port, backlog)
        for _ in range(BACKLOG[FULL] + 1):
            with self.target.ns.inside():
                self.clients.append(socket.create_connection((STACK, FULL), timeout=5))
        time.sleep(0.05)
        self.send({sport: probe(sport, FLOODED, 0x02, "bare", b"") for sport in range(10000, 10001 + BACKLOG[FLOODED])})

    def send(self, packets: dict[int, bytes]) -> dict[int, list[bytes]]:
        """The answers to each packet, by its source port: until the last probe, a SYN to the closed port, is reset and 0.05 s pass without more."""
        answers: dict[int, list[bytes]] = {sport: [] for sport in (*packets, LAST)}
        last = probe(LAST, CLOSED, 0x02, "bare", b"")
        for packet in (*packets.values(), last):
            self._out.sendto(packet, (STACK, 0))
        while True:
            self._in.settimeout(0.05 if answers[LAST] else 5)
            try:
                data, where = self._in.recvfrom(65536)
            except TimeoutError:
                assert answers.pop(LAST), "no answer to the last probe"
                return answers
            dport = int.from_bytes(data[22:24], "big")
            if where[2] != socket.PACKET_OUTGOING and data[9] == socket.IPPROTO_TCP and data[16:20] == last[12:16] and dport in answers:
                answers[dport].append(data)

    def table(self) -> dict[Key, list[str]]:
        """What each probe gets. All are sent before any answer is read in full, well before the first timer of a request (1 s)."""
        asked = probes()
        answers: dict[int, list[bytes]] = {}
        self.listen_and_fill()
        for name in reversed(PORTS.values()):
            answers |= self.send(dict(packet for key, packet in asked.items() if key[0] == name))
        return {key: [words(IP(answer)) for answer in answers[sport]] for key, (sport, _) in asked.items()}

    def close(self) -> None:
        for sock in (self._out, self._in, *self.clients):
            sock.close()


def probe(sport: int, port: int, flags: int, options: str, payload: bytes) -> bytes:
    return bytes(IP(src=SCANNER, dst=STACK, id=1, ttl=64, flags="DF") / TCP(
        sport=sport, dport=port, flags=flags, seq=SEQ, ack=ACK, window=512, urgptr=0, options=OPTIONS[options]) / payload)


Key = tuple[str, str, bool, str]        # port, flags, with payload, options


@functools.cache
def probes() -> dict[Key, tuple[int, bytes]]:
    """Every combination of flags with and without options and payload at each port: source port and packet."""
    sports = itertools.count(20000)
    return {(name, str(TCP(flags=flags).flags) or "none", bool(payload), options):
            (sport := next(sports), probe(sport, port, flags, options, payload))
            for port, name in PORTS.items() for flags in range(64) for options in OPTIONS for payload in (b"", b"scan")}


def words(answer: Any) -> str:
    """An answer with its numbers relative to the probe's; what the sender draws at random is only named."""
    tcp = answer[TCP]
    seq = {0: "0", ACK: "their ack"}.get(tcp.seq, "isn")
    ack = "0" if tcp.ack == 0 else f"seq{(tcp.ack - SEQ) & 0xFFFFFFFF:+d}"
    options = [(kind, ("tsval", value[1]) if kind == "Timestamp" and value[0] else value) for kind, value in tcp.options]
    return (f"{tcp.flags} seq {seq} ack {ack} win {tcp.window} urg {tcp.urgptr} {options} ttl {answer.ttl} {answer.flags} "
            f"id {'0' if answer.id == 0 else 'drawn'} tos {answer.tos:#x} length {answer.len}")


@pytest.fixture
def targets(lab: TunLab, netns: Callable[[], Namespace]) -> Iterator[tuple[UstackTarget, KernelTarget]]:
    ustack, kernel = UstackTarget(lab), KernelTarget(netns(), netns())
    rmem = "net.ipv4.tcp_rmem"                          # the kernel's follows the machine's memory, the window scale follows it
    ustack.stack.sysctl[rmem] = kernel.host.run("cat", f"/proc/sys/{rmem.replace('.', '/')}").stdout.decode().strip()
    try:
        yield ustack, kernel
    finally:
        ustack.close()
        kernel.close()


@pytest.fixture
def probers(targets: tuple[UstackTarget, KernelTarget]) -> Iterator[list[Prober]]:
    made = [Prober(target) for target in targets]
    try:
        yield made
    finally:
        for one in made:
            one.close()


@pytest.mark.parametrize("syncookies", [0, 1])
def test_all_combinations_of_flags(probers: list[Prober], syncookies: int) -> None:
    tables = []
    for prober in probers:
        prober.target.sysctl("net.ipv4.tcp_syncookies", syncookies)
        tables.append(prober.table())
    ours, theirs = tables
    assert len(ours) == len(PORTS) * 64 * 2 * len(OPTIONS)
    assert {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]} == {}
    answered = {name: sum(bool(got) for key, got in theirs.items() if key[0] == name) for name in PORTS.values()}
    # closed: all but RST. open: ACK without RST gets a reset, SYN without ACK, RST and FIN a SYN-ACK; of that, full queues leave a cookie or nothing.
    assert answered == {"open": 80, "closed": 128, "accept queue full": 64, "syn queue full": 64 + 16 * syncookies}


def both(targets: tuple[UstackTarget, KernelTarget], *words: str, timeout: float = 50) -> list[str]:
    """The output of a command run in both probers' namespaces at once, DEVICE in it being the prober's device."""
    running = [subprocess.Popen(one.ns.command(*(one.device if word == "DEVICE" else word for word in words)), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for one in targets]
    try:
        return [one.communicate(timeout=timeout)[0] for one in running]
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
                one.wait()


@pytest.mark.skipif(shutil.which("hping3") is None, reason="hping3 is not installed")
def test_hping3(targets: tuple[UstackTarget, KernelTarget], probers: list[Prober]) -> None:
    """A sample with hping3 itself: the lines it prints differ in nothing but the time."""
    for prober in probers:
        prober.listen_and_fill()
    seen = {}
    for flags, port in (("-S", OPEN), ("-A", OPEN), ("-S", CLOSED), ("-F", CLOSED), ("-SA", FULL), ("-S", FLOODED)):
        ours, theirs = (re.findall(r"^(len=.*)rtt=", text, re.M) for text in both(
            targets, "hping3", "-c", "1", "-I", "DEVICE", "-a", SCANNER, flags, "-p", str(port), STACK))
        assert ours == theirs, (flags, port)
        assert len(ours) == 1, (flags, port)
        seen[flags, port] = re.search(r"flags=(\w+)", ours[0])[1]  # type: ignore[index]
    assert seen == {("-S", OPEN): "SA", ("-A", OPEN): "R", ("-S", CLOSED): "RA", ("-F", CLOSED): "RA", ("-SA", FULL): "R", ("-S", FLOODED): "SA"}


def nmap(targets: tuple[UstackTarget, KernelTarget], *options: str) -> list[ET.Element]:
    texts = both(targets, "nmap", "-n", "-Pn", "--send-ip", "-e", "DEVICE", "-oX", "-", *options, STACK)
    return [ET.fromstring(text[text.index("<?xml"):]) for text in texts]


def states(run: ET.Element) -> dict[int, tuple[str, str, str]]:
    """What nmap says of each port: its state, why, and the TTL of the answer."""
    out = {}
    for port in run.iter("port"):
        state = port.find("state")
        assert state is not None
        out[int(port.get("portid", ""))] = (state.get("state", ""), state.get("reason", ""), state.get("reason_ttl", ""))
    return out


SCANS = {
    "-sS": ("open", "closed", "filtered", "open"),
    "-sA": ("unfiltered", "unfiltered", "unfiltered", "unfiltered"),
    "-sN": ("open|filtered", "closed", "open|filtered", "open|filtered"),
    "-sX": ("open|filtered", "closed", "open|filtered", "open|filtered"),
    "-sU": ("closed", "closed", "closed", "closed"),
}


@pytest.mark.skipif(shutil.which("nmap") is None, reason="nmap is not installed")
def test_nmap_states(targets: tuple[UstackTarget, KernelTarget], probers: list[Prober]) -> None:
    for prober in probers:
        prober.listen_and_fill()
    ports = ",".join(map(str, PORTS))
    for scan, expected in SCANS.items():
        ours, theirs = (states(run) for run in nmap(targets, scan, "-p", ports, "--max-retries", "1", "--max-rtt-timeout", "200ms"))
        assert ours == theirs, scan
        assert tuple(state for state, _, _ in ours.values()) == expected, scan


def fingerprint(run: ET.Element) -> dict[str, dict[str, str]]:
    """nmap's fingerprint, test by test: SEQ, OPS, WIN, ECN, T1..T7, U1, IE."""
    found = run.find(".//osfingerprint")
    assert found is not None
    text = found.get("fingerprint", "").replace("\nOS:", "")
    return {name: dict(pair.split("=", 1) for pair in body.split("%") if "=" in pair)
            for name, body in re.findall(r"(\w+)\(([^)]*)\)", text)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nmap") is None, reason="nmap is not installed")
def test_nmap_fingerprint(targets: tuple[UstackTarget, KernelTarget], probers: list[Prober]) -> None:
    for prober in probers:
        prober.listen_and_fill()
    ours, theirs = (fingerprint(run) for run in nmap(targets, "-O", "-d", "-p", f"{OPEN},{CLOSED}", "--max-os-tries", "1"))
    for side in (ours, theirs):
        side.pop("SCAN")                                # date, distance, MAC address
        for estimate in ("SP", "ISR", "GCD"):           # of ISNs that both draw from a hash and a clock
            side["SEQ"].pop(estimate, None)
        rate = int(side["SEQ"].pop("TS"), 16)           # log2 of a TSval's steps per second: offsets drawn per connection, no clock to be seen
        assert 0x1E <= rate <= 0x24
    assert set(ours) >= {"SEQ", "OPS", "WIN", "ECN", "T1", "T2", "T3", "T4", "T5", "T6", "T7", "U1", "IE"}
    assert ours == theirs
