"""A scripted TCP endpoint on the other side of the TUN device: one 4-tuple, numbers counted from the two initial
sequence numbers.

It answers nothing by itself. It remembers what the kernel sent (initial number, highest byte, newest TSval)
so that a scenario writes `ack` or `data 100` and means the right numbers; every number can be written out
instead: `5` counts from the initial number, `+3`/`-3` from the current one, `#77` is literal.
"""

from __future__ import annotations

import struct
from typing import Any

from ..replay import packet as wire
from . import build, errors
from .bench import Bench

DEFAULT_WS = 7
LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def number(text: str, base: int, current: int) -> tuple[bool, int]:
    """(literal, value): of `#77`, `+3`, `-3` or `5`."""
    if text.startswith("#"):
        return True, int(text[1:], 0)
    if text[0] in "+-":
        return False, current + int(text, 0)
    return False, base + int(text, 0)


class Client:
    def __init__(self, bench: Bench, name: str, src: str, sport: int, dst: str, dport: int, iss: int) -> None:
        self.bench, self.name = bench, name
        self.src, self.sport, self.dst, self.dport = src, sport, dst, dport
        self.iss, self.sent = iss, 0
        self.isn_p: int | None = None
        self.isn = 0
        self.seen = 0
        self.ts: int | None = None
        self.ts_base = 1000
        self.tsvals: list[tuple[int, int]] = []
        self.fo_cookie = b""
        self.echo: list[Any] | None = None
        self.defaults: dict[str, str] = {}
        bench.observers[src, sport, dst, dport] = self.observe

    def observe(self, p: int, packet: wire.Packet) -> None:
        """A packet of the kernel to this endpoint."""
        t = packet.tcp
        assert t is not None
        if t.flags & wire.SYN and t.seq != self.isn:
            self.isn_p, self.isn, self.seen = p, t.seq, 0
            self.tsvals.clear()
        if t.tsval is not None:
            self.tsvals.append((p, t.tsval))
        for kind, at, length in wire.walk_options(t.options):
            if kind == 34 and length > 2:
                self.fo_cookie = t.options[at + 2:at + length]
        if self.isn_p is not None and not t.flags & wire.RST:
            end = (t.seq + len(t.payload) + bool(t.flags & wire.SYN) + bool(t.flags & wire.FIN) - self.isn) & 0xFFFFFFFF
            if end < 1 << 31:
                self.seen = max(self.seen, end)

    # ---- verbs

    def syn(self, words: dict[str, str]) -> None:
        """A new SYN; the options of Linux unless told otherwise (`noopt`, `nots`, `nosack`, `nows`, `mss=`, `ws=`, `opt=`)."""
        if "again" not in words:
            self.sent = 0
            self.isn_p = None if "flags" not in words else self.isn_p
            self.ts = None
        if "iss" in words:
            self.iss = int(words["iss"], 0)
        words = {"flags": "S", **words}
        if "seq" not in words:
            words["seq"] = "0"
        size = self._send(words, self._syn_options(words))
        self.sent = max(self.sent, 1 if "fo" not in words and "tfo" not in words else 1 + size)

    def segment(self, words: dict[str, str]) -> None:
        """Any segment; `hold` leaves the sending side's number where it was."""
        options = bytes.fromhex(words["opt"]) if "opt" in words else self._options(words)
        start = self.sent
        if "flags" not in words:
            words["flags"] = "A"
        size = self._send(words, options)
        if "hold" in words or "S" in words["flags"] or "R" in words["flags"]:
            return
        if "seq" not in words:
            self.sent = start + size + ("F" in words["flags"])

    def icmp(self, what: str, words: dict[str, str]) -> None:
        """An ICMP error that quotes a packet of the kernel: `icmp 3/1 seq=1 len=8 mtu=1400`."""
        kind, _, code = what.partition("/")
        literal, seq = number(words.get("seq", "1"), 0, self.seen)
        value = seq if literal else (self.isn + seq) & 0xFFFFFFFF
        inner = build.IpFields(self.dst, self.src, ident=int(words.get("qid", "1"), 0), total=int(words.get("qlen", "40"), 0))
        head = struct.pack(">HHIIHHHH", self.dport, self.sport, value, 0, 0x5010, 64240, 0, 0)
        quoted = build.ip(inner, head[:int(words.get("len", "8"), 0)])
        rest = struct.pack(">HH", int(words.get("unused", "0"), 0), int(words.get("mtu", "0"), 0)) + quoted
        sym: dict[str, Any] = {}
        if not literal:
            if self.isn_p is None:
                raise errors.ScenarioError(f"{self.name}: the kernel has sent no SYN to quote")
            sym = {"quote": {"len": len(quoted), "seq": ["isn", self.isn_p, seq]}}
        source = words.get("from", self.src)
        outer = build.IpFields(source, self.dst, proto=build.ICMP)
        self.bench.inject(build.icmp(outer, int(kind), int(code or 0), rest, bad="badsum" in words), sym)

    # ---- parts of a packet

    def _syn_options(self, words: dict[str, str]) -> bytes:
        if "opt" in words:
            raw = bytes.fromhex(words["opt"].replace("TS", struct.pack(">II", self._tsval(words), 0).hex()))
            self.ts = self.ts if "080a" in words["opt"] else None
            return raw
        if "noopt" in words:
            return b""
        out = b"" if "nomss" in words else b"\x02\x04" + struct.pack(">H", int(words.get("mss", "1460"), 0))
        sack, stamps, scale = "nosack" not in words, "nots" not in words, "nows" not in words
        if stamps:
            out += (b"\x04\x02" if sack else b"\x01\x01") + b"\x08\x0a" + struct.pack(">II", self._tsval(words), self._tsecr_literal(words))
        elif sack:
            out += b"\x01\x01\x04\x02"
        if scale:
            out += b"\x01\x03\x03" + bytes([int(words.get("ws", str(DEFAULT_WS)), 0)])
        if "fo" in words:
            cookie = self.fo_cookie if words["fo"] == "seen" else bytes.fromhex(words["fo"])
            out += b"\x22" + bytes([2 + len(cookie)]) + cookie
        if "foexp" in words:
            cookie = bytes.fromhex(words["foexp"])
            out += b"\xfe" + bytes([4 + len(cookie)]) + b"\xf9\x89" + cookie
        return out

    def synack(self, words: dict[str, str]) -> None:
        """The answer to the kernel's SYN."""
        self.sent = 0
        options = self._syn_options(words)
        sym_words = {"flags": "SA", "seq": "0", **words}
        at = options.find(b"\x08\x0a")
        if at >= 0 and self.tsvals:
            self.echo, echoed = self._tsecr(words)
            options = options[:at + 6] + struct.pack(">I", echoed) + options[at + 10:]
        self._send(sym_words, options)
        self.sent = 1

    @staticmethod
    def _tsecr_literal(words: dict[str, str]) -> int:
        return int(words["ecr"][1:], 0) if words.get("ecr", "").startswith("#") else 0

    def _tsval(self, words: dict[str, str]) -> int:
        if "ts" in words:
            current = self.ts if self.ts is not None else self.ts_base
            _, value = number(words["ts"], 0, current)
        else:
            value = self.ts_base if self.ts is None else self.ts + 1
        if "hold" not in words or self.ts is None:
            self.ts = value
        return value & 0xFFFFFFFF

    def _options(self, words: dict[str, str]) -> bytes:
        out = b""
        if ("ts" in words or self.ts is not None) and "nots" not in words and (self.tsvals or "ts" in words or "ecr" in words):
            self.echo, echoed = self._tsecr(words)
            out += b"\x01\x01\x08\x0a" + struct.pack(">II", self._tsval(words), echoed)
        if "sack" in words:
            blocks = [b.split("-") for b in words["sack"].split(",")]
            out += b"\x01\x01\x05" + bytes([2 + 8 * len(blocks)])
            for left, right in blocks:
                out += struct.pack(">II", (self.isn + int(left)) & 0xFFFFFFFF, (self.isn + int(right)) & 0xFFFFFFFF)
        return out

    def _tsecr(self, words: dict[str, str]) -> tuple[list[Any] | None, int]:
        """(symbol, value) of TSecr."""
        text = words.get("ecr", "+0")
        if text.startswith("#") or not self.tsvals:
            return None, int(text.removeprefix("first").lstrip("#+") or "0", 0) & 0xFFFFFFFF
        which, delta = self.tsvals[-1], text
        if text.startswith("first"):
            which, delta = self.tsvals[0], text[5:] or "+0"
        n = int(delta, 0)
        return ["tsval", which[0], n], (which[1] + n) & 0xFFFFFFFF

    def _payload(self, words: dict[str, str]) -> bytes:
        text = words.get("data", "")
        if not text:
            return b""
        if text.startswith("hex:"):
            return bytes.fromhex(text[4:])
        if text.isdigit():
            return LETTERS[self.sent % 26:self.sent % 26 + 1] * int(text)
        return text.encode()

    def _send(self, words: dict[str, str], options: bytes) -> int:
        words = {**self.defaults, **words}
        flags = build.flag_bits(words["flags"])
        literal_seq, seq = number(words.get("seq", "+0"), 0, self.sent)
        seq = seq if literal_seq else self.iss + seq
        sym: dict[str, Any] = {}
        ack = self._ack(words, flags, sym)
        if self.echo is not None:
            sym["tsecr"], self.echo = self.echo, None
        if "sack" in words and not flags & wire.SYN:
            sym["sack"] = [["isn", self.isn_p, *map(int, b.split("-"))] for b in words["sack"].split(",")]
        payload = self._payload(words)
        t = build.TcpFields(int(words.get("sport", self.sport)), int(words.get("dport", self.dport)), seq, ack, flags,
                            int(words.get("win", "64240"), 0), int(words.get("urg", "0"), 0), options, payload,
                            int(words["doff"]) if "doff" in words else None, "badsum" in words)
        raw = build.tcp(self.ip_fields(words), t)
        if "trunc" in words:
            raw = raw[:int(words["trunc"])]
        if "frag" in words:
            pieces = build.fragments(raw, int(words["frag"]))
            for piece in reversed(pieces) if "rev" in words else pieces:
                self.bench.inject(piece)
        else:
            self.bench.inject(raw, sym)
        return len(payload)

    def _ack(self, words: dict[str, str], flags: int, sym: dict[str, Any]) -> int:
        if "ack" not in words and not flags & wire.ACK:
            return 0
        literal, n = number(words.get("ack", "+0"), 0, self.seen)
        if literal or self.isn_p is None:
            return n if literal else int(words.get("ack", "0").lstrip("+"), 0)
        sym["ack"] = ["isn", self.isn_p, n]
        return (self.isn + n) & 0xFFFFFFFF

    def ip_fields(self, words: dict[str, str]) -> build.IpFields:
        return ip_fields(words, self.src, self.dst)


def ip_fields(words: dict[str, str], src: str, dst: str, proto: int = build.TCP) -> build.IpFields:
    """The IPv4 header that the words of a line ask for."""
    get = words.get
    return build.IpFields(get("src", src), get("dst", dst), proto=int(get("proto", str(proto)), 0), tos=int(get("tos", "0"), 0),
                          ttl=int(get("ttl", "64"), 0), ident=int(get("ipid", "0"), 0), frag=int(get("ipfrag", "0x4000"), 0),
                          options=bytes.fromhex(get("ipopt", "")), version=int(get("ipver", "4")),
                          ihl=int(words["ihl"]) if "ihl" in words else None, total=int(words["iplen"]) if "iplen" in words else None,
                          bad="badip" in words)
