"""A stack in virtual time and one line per packet: the dialect of tests/states.

    with Testbed(backlog=1) as t:
        t.run('''
            0.000 < S 0 win 65535 <mss 1460,sackOK,TS 1000 0,nop,ws 7>
            0.000 > S. 0 ack 1 win 65160 <mss 1460,sackOK,TS 0 1000,nop,ws 10>
            1.000 > S. 0 ack 1
            1.500 < . 1 ack 1
            2.000 quiet
        ''')

A line is `TIME [PORT] DIRECTION FLAGS SEQ [words] [<options>] [! REASON] [# remark]`.

TIME    seconds. `<` goes into the stack, `>` must come out of it at exactly that time, in order per port.
PORT    the peer's port, 1000 if left out; each port is a connection of its own.
FLAGS   S F R P . (ACK) U E W (CWR) A (AE), `-` = none.
SEQ     `begin`, `begin(length)` or `begin:end`; payload comes with the length. Numbers are relative: the
        peer's to its `isn` (10000), the stack's to the ISN of its last SYN-ACK on the port; `=n` is n itself.
words   `ack N`, `win N`, `urg N`, `tos N`, `ttl N`, `id N` (`id nz`: not 0).
options as shown; `TS val ecr`: the stack's TSval, and outside a SYN the peer's echo of it, are relative to
        the stack's first TSval on the port. Others: `sack a b`, `fo HEX`, `md5`, `eol`, `KIND:HEX`.
REASON  on a `<` line: the packet is dropped for this reason; `taken`: for none.

An expected line is compared in flags, numbers and length, and in what it names besides; options only if
`<...>` is there. `TIME quiet`: nothing comes out up to then. `count NAME+1 ...`: what nstat changed since
the last count line; `count` alone: nothing. Every packet that comes out must be expected; its checksums are
verified.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from scapy.all import IP, TCP, Raw  # type: ignore[attr-defined]

from ustack import Stack, VirtualClock

SERVER = "192.0.2.1"
PEER = "192.0.2.2"
ISN = 10000
FLAGS = {
    "S": 0x02,
    "F": 0x01,
    "R": 0x04,
    "P": 0x08,
    ".": 0x10,
    "U": 0x20,
    "E": 0x40,
    "W": 0x80,
    "A": 0x100,
    "-": 0,
}
# nstat counters that every packet changes; the `count` line leaves them out
NOISE = re.compile(
    r"^(Ip(InReceives|InDelivers|OutRequests|OutTransmits)|IpExt(In|Out)\w*Octets|IpExtIn\w+Pkts|TcpInSegs|TcpOutSegs)$"
)


@dataclass
class Flow:
    """What a peer port has seen: the base of the relative numbers."""

    isn: int = ISN
    stack_isn: int | None = None
    tsval: int | None = None
    out: list[tuple[int, Any]] = field(default_factory=list)


def ns(text: str) -> int:
    """Seconds as text to nanoseconds, exactly."""
    whole, _, frac = text.partition(".")
    return int(whole) * 1_000_000_000 + int((frac + "000000000")[:9])


LINE = re.compile(
    r"^(?P<time>\d+(?:\.\d+)?)\s+(?:(?P<port>\d+)\s+)?(?P<dir>[<>])\s+(?P<flags>[SFRP.UEWA-]+)\s+"
    r"(?P<seq>=?-?\d+)(?::(?P<end>-?\d+)|\((?P<len>\d+)\))?(?P<words>(?:\s+(?:ack|win|urg|tos|ttl|id)\s+=?-?\w+)*)"
    r"(?:\s+<(?P<opts>[^>]*)>)?(?:\s+!\s+(?P<drop>\w+))?\s*$"
)


def timestamp(options: list[Any]) -> tuple[int, int] | None:
    return next((v for k, v in options if k == "Timestamp"), None)


class Testbed:
    """One stack with a listener on port 80 (backlog=None: none), driven by lines."""

    __test__ = False

    def __init__(
        self,
        *,
        backlog: int | None = 128,
        sysctl: dict[str, Any] | None = None,
        address: str = SERVER + "/24",
        seed: int = 1,
        **kw: Any,
    ) -> None:
        self.clock = VirtualClock(wall=1_700_000_000_000_000_000)
        self.stack = Stack(None, address, clock=self.clock, sysctl=sysctl or {}, seed=seed, **kw)
        self.flows: dict[int, Flow] = {}
        self.base = self.stack.nstat(zeros=True)
        self.port = 80
        self.peer = PEER
        self.server = SERVER
        self.listener: Any = None
        if backlog is not None:
            self.listener = self.listen(80, backlog)

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self.check_quiet("end")
        finally:
            self.stack.close()

    # ---- sockets ----------------------------------------------------------------------------------------
    def listen(self, port: int, backlog: int) -> Any:
        sock = self.stack.socket()
        sock.setsockopt(1, 2, 1)
        sock.bind(("0.0.0.0", port))
        sock.setblocking(False)
        sock.listen(backlog)
        return sock

    def group(self, members: int) -> list[Any]:
        """An SO_REUSEPORT group of non-blocking listeners on the testbed's port."""
        socks = []
        for _ in range(members):
            sock = self.stack.socket()
            sock.setsockopt(1, 15, 1)
            sock.bind(("0.0.0.0", self.port))
            sock.setblocking(False)
            sock.listen(16)
            socks.append(sock)
        return socks

    # ---- packets ----------------------------------------------------------------------------------------
    def flow(self, port: int) -> Flow:
        return self.flows.setdefault(port, Flow())

    def collect(self) -> None:
        """Sort what the stack sent by peer port; every packet is decoded and its checksums verified."""
        for at, packet in self.stack.take():
            p = IP(packet)
            assert TCP in p, f"not TCP: {p.summary()}"
            again = IP(packet)
            del again[IP].chksum, again[TCP].chksum
            assert bytes(again) == packet, f"checksum or length wrong in {p.summary()}"
            self.flow(p[TCP].dport).out.append((at, p))

    def inject(self, packet: bytes, at: int | None = None) -> int:
        return self.stack.inject(packet, at)

    def advance(self, at: int) -> None:
        if at > self.clock.now:
            self.stack._driver.clock.advance(at)
        self.collect()

    def swallow(self, *ports: int) -> None:
        """Forget what came out so far (of all ports if none is named)."""
        self.collect()
        for port, f in self.flows.items():
            if not ports or port in ports:
                f.out.clear()

    def check_quiet(self, where: str) -> None:
        self.collect()
        left = {
            port: [(at / 1e9, p[TCP].sprintf("%TCP.flags%"), self.show(port, p)) for at, p in f.out]
            for port, f in self.flows.items()
            if f.out
        }
        assert not left, f"{where}: unexpected packets {left}"

    # ---- the dialect ------------------------------------------------------------------------------------
    def run(self, script: str) -> None:
        for line in script.splitlines():
            line = line.split("#")[0].strip()
            if line:
                self.line(line)

    def line(self, line: str) -> None:
        if m := re.match(r"^(\d+(?:\.\d+)?)\s+quiet$", line):
            self.advance(ns(m[1]))
            self.check_quiet(line)
            return
        if line == "count" or line.startswith("count "):
            self.count(line[5:].split(), line)
            return
        m = LINE.match(line)
        assert m, f"not understood: {line}"
        port = int(m["port"] or 1000)
        if m["dir"] == "<":
            self.line_in(m, port, line)
        else:
            self.line_out(m, port, line)

    def count(self, words: list[str], line: str) -> None:
        now = self.stack.nstat(zeros=True)
        got = {
            k: now[k] - self.base.get(k, 0)
            for k in now
            if now[k] != self.base.get(k, 0) and not NOISE.match(k)
        }
        want = {}
        for word in words:
            m = re.match(r"^(\w+)([+-]\d+)$", word)
            assert m, f"not understood: {word}"
            want[m[1]] = int(m[2])
        short = {re.sub(r"^(TcpExt|IpExt|Tcp|Ip)", "", k): v for k, v in got.items()}
        full = {k: v for k, v in want.items() if k in got}
        rest = {k: v for k, v in want.items() if k not in got}
        seen = {k: got[k] for k in full} | {
            k: v
            for k, v in short.items()
            if k not in {re.sub(r"^(TcpExt|IpExt|Tcp|Ip)", "", f) for f in full}
        }
        assert seen == full | rest, f"{line}\n  counted {got}"
        self.base = now

    @staticmethod
    def words(m: re.Match[str]) -> dict[str, str]:
        w = m["words"].split()
        return dict(zip(w[::2], w[1::2], strict=True))

    def line_in(self, m: re.Match[str], port: int, line: str) -> None:
        at = ns(m["time"])
        self.advance(at)
        for p, f in self.flows.items():
            late = [(t / 1e9, self.show(p, pkt)) for t, pkt in f.out if t < at]
            assert not late, f"before {line}: unexpected packets of port {p}: {late}"
        f = self.flow(port)
        words = self.words(m)
        seq = self.number(m["seq"], f.isn)
        length = int(m["len"] or 0) if m["end"] is None else int(m["end"]) - int(m["seq"])
        flags = sum(FLAGS[c] for c in m["flags"])
        ack = self.number(words["ack"], f.stack_isn or 0) if "ack" in words else 0
        packet = bytes(
            IP(
                src=self.peer,
                dst=self.server,
                tos=int(words.get("tos", "0"), 0),
                ttl=int(words.get("ttl", "64")),
            )
            / TCP(
                sport=port,
                dport=self.port,
                flags=flags,
                seq=seq,
                ack=ack,
                window=int(words.get("win", "65535")),
                urgptr=int(words.get("urg", "0")),
                options=self.options(m["opts"] or "", f, True, bool(flags & 2)),
            )
            / Raw(bytes((i % 26) + 97 for i in range(length)))
        )
        before = self.stack.drops()
        self.inject(packet, at)
        self.collect()
        if m["drop"]:
            after = self.stack.drops()
            reasons = [k for k in after if after[k] != before.get(k, 0)]
            want = [] if m["drop"] == "taken" else [m["drop"]]
            assert reasons == want, f"{line}\n  dropped for {reasons}"

    def line_out(self, m: re.Match[str], port: int, line: str) -> None:
        at = ns(m["time"])
        self.advance(at)
        f = self.flow(port)
        assert f.out, f"nothing came out: {line}"
        t, p = f.out.pop(0)
        tcp = p[TCP]
        if tcp.flags.S:
            f.stack_isn = tcp.seq
        ts = timestamp(tcp.options)
        if ts and f.tsval is None:
            f.tsval = ts[0]
        shown = f"{t / 1e9:.9f} {self.show(port, p)}"
        want = {"time": at, "flags": sum(FLAGS[c] for c in m["flags"])}
        got = {"time": t, "flags": int(tcp.flags)}
        want["seq"] = self.number(m["seq"], f.stack_isn or 0)
        got["seq"] = tcp.seq
        length = int(m["len"] or 0) if m["end"] is None else int(m["end"]) - int(m["seq"])
        want["len"], got["len"] = length, len(tcp.payload)
        for key, value in self.words(m).items():
            if key == "ack":
                want[key] = self.number(value, f.isn)
                got[key] = tcp.ack
            elif key == "id" and value == "nz":
                assert p.id != 0, f"{line}\n  got {shown}"
            else:
                want[key] = int(value, 0)
                got[key] = {"win": tcp.window, "urg": tcp.urgptr, "tos": p.tos, "ttl": p.ttl, "id": p.id}[key]
        if m["opts"] is not None:
            want["opts"] = bytes(TCP(options=self.options(m["opts"], f, False)))[20:].hex()
            got["opts"] = bytes(tcp)[20 : tcp.dataofs * 4].hex()
        assert got == want, f"{line}\n  got {shown}"

    @staticmethod
    def number(text: str, base: int) -> int:
        """`=n` is n itself, `n` is relative."""
        return (int(text[1:]) if text[0] == "=" else base + int(text)) % 2**32

    def options(self, text: str, f: Flow, inbound: bool, syn: bool = False) -> list[Any]:
        """`mss 1460,sackOK,TS val ecr,nop,ws 7,fo hex,eol,md5,kind:hex` for scapy."""
        out: list[Any] = []
        for word in filter(None, (w.strip() for w in text.split(","))):
            k, _, v = word.partition(" ")
            if k == "mss":
                out.append(("MSS", int(v)))
            elif k == "sackOK":
                out.append(("SAckOK", b""))
            elif k == "nop":
                out.append(("NOP", None))
            elif k == "eol":
                out.append(("EOL", None))
            elif k == "ws":
                out.append(("WScale", int(v)))
            elif k == "TS":
                mine, theirs = v.split()
                if inbound:
                    base = 0 if syn else f.tsval or 0
                    out.append(("Timestamp", (int(mine) % 2**32, self.number(theirs, base))))
                else:
                    out.append(("Timestamp", (self.number(mine, f.tsval or 0), int(theirs) % 2**32)))
            elif k == "fo":
                out.append((34, bytes.fromhex(v.strip())))
            elif k == "md5":
                out.append((19, bytes(16)))
            elif k == "sack":
                edges = [int(x) for x in v.replace(":", " ").split()]
                out.append(
                    ("SAck", tuple((e + (f.stack_isn or 0) if inbound else e + f.isn) % 2**32 for e in edges))
                )
            else:
                kind, _, data = word.partition(":")
                out.append((int(kind), bytes.fromhex(data)))
        return out

    def show(self, port: int, p: Any) -> str:
        """A packet of the stack in the dialect, as far as it goes."""
        f, tcp = self.flow(port), p[TCP]
        letters = "".join(c for c, bit in FLAGS.items() if bit and int(tcp.flags) & bit) or "-"
        seq = (tcp.seq - (f.stack_isn or 0)) % 2**32
        ack = (tcp.ack - f.isn) % 2**32
        opts = bytes(tcp)[20 : tcp.dataofs * 4].hex()
        ip = f"id {p.id} tos {p.tos} ttl {p.ttl}"
        return f"{port} > {letters} {seq}({len(tcp.payload)}) ack {ack} win {tcp.window} opts {opts} {ip}"

    # ---- what tests ask ---------------------------------------------------------------------------------
    def connect(
        self, port: int, at: float | str, opts: str = "mss 1460,sackOK,TS 1000 0,nop,ws 7", data: int = 0
    ) -> None:
        """A whole handshake at one time, nothing compared, the SYN-ACK swallowed."""
        t = at if isinstance(at, str) else f"{at:.9f}"
        self.line(f"{t} {port} < S 0 win 65535 <{opts}>")
        f = self.flow(port)
        assert f.out and f.out[-1][1][TCP].flags.S, f"no SYN-ACK for port {port}"
        p = f.out[-1][1]
        f.stack_isn = p[TCP].seq
        ts = timestamp(p[TCP].options)
        f.tsval = ts[0] if ts else None
        f.out.clear()
        tail = " <nop,nop,TS 1000 0>" if ts else ""
        self.line(f"{t} {port} < {'P.' if data else '.'} 1({data}) ack 1 win 512{tail}")

    def rows(self, state: str) -> list[dict[str, Any]]:
        return [r for r in self.stack.ss("-tan") if r["state"] == state]

    def half_open(self) -> int:
        return len(self.rows("SYN-RECV"))
