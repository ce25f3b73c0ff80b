"""The language of a scenario's steps: one command a line, played on a `Bench`.

    L0 = listen 8000 4 TCP_DEFER_ACCEPT=5     socket, SO_REUSEADDR, options, bind, listen, not blocking; `addr=`, `noreuse`, `blocking`, `nolisten`
    A0 = socket 192.0.2.1:5000 TCP_NODELAY=1  a socket, bound if an address is given
    c1: from 198.51.100.7:4000 to :8000       the endpoint c1 (made at its first line, else from 192.0.2.2 to the newest listener)
    c1: syn mss=536 nots                      open | syn | synack | ack | data 100 | fin | rst | seg FLAGS | icmp 3/1 | default WORDS
    c1..c5: open                              the line for c1, c2 .. c5; with `quick` at once, without the 2 ms of quiet after each
                                              packet; with `times=3` three times
    L0.accept C0                              accept, recv, send, close, shutdown, setsockopt, getsockopt, info, error, connect, bind,
                                              listen, poll, name, peer, block, nonblock
    spawn L0.accept C0 / join                 the call on a thread of its own / wait for all of them
    ? C0.recv                                 the line, if the socket exists by then, or the kernel has sent the endpoint a SYN
    wait 0.5 | until 3.2 | mark LABEL | ss -tan | ss_text -tan | netstat_text -ant
    sysctl NAME=VALUE | get NAME | route WORDS | link MTU | addr add WORDS | note TEXT
    ip src=192.0.2.9 proto=17 data=hex:00     a packet made of fields; `icmp 8/0 data=..`, `udp dport=7 data=..`
"""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Callable

from . import build, errors, options
from .bench import Bench
from .client import Client, ip_fields

EVENTS = ["IN", "PRI", "OUT", "RDHUP", "RDNORM", "WRNORM"]
_RANGE = re.compile(r"(\w*?)(\d+)\.\.\1?(\d+):(.*)")
_CLIENT = re.compile(r"(\w+):\s*(.*)")
_CALL = re.compile(r"(spawn\s+)?(\w+)\.(\w+)\s*(.*)")
_MAKE = re.compile(r"(\w+)\s*=\s*(listen|socket)\s*(.*)")
FIRST_PORT = 20000


def pairs(words: list[str]) -> dict[str, str]:
    """`a=1 b` -> {"a": "1", "b": ""}."""
    out = {}
    for word in words:
        key, _, value = word.partition("=")
        out[key] = value
    return out


class Script:
    """Plays lines on a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.clients: dict[str, Client] = {}
        self.port = 8000
        self.here = "192.0.2.1"

    def play(self, text: str) -> None:
        for n, line in enumerate(text.splitlines(), 1):
            line = re.sub(r"(^|\s)//.*", "", line).strip()
            if line and not line.startswith("# "):
                try:
                    self.line(line)
                except (errors.ScenarioError, KeyError, IndexError, ValueError, struct.error) as e:
                    raise errors.ScenarioError(f"line {n}: {line}: {e}") from e

    def line(self, line: str) -> None:
        if line.startswith("? "):
            line = line[2:]
            m, c = _CALL.fullmatch(line), _CLIENT.fullmatch(line)
            if (m and m[2] not in self.bench.sockets) or (c and self.client(c[1]).isn_p is None):
                return
        m = _RANGE.fullmatch(line)
        if m:
            for i in range(int(m[2]), int(m[3]) + 1):
                self.line(f"{m[1]}{i}:{m[4]}")
            return
        if m := _MAKE.fullmatch(line):
            self._make(m[1], m[2], shlex.split(m[3]))
        elif m := _CLIENT.fullmatch(line):
            self._client(m[1], shlex.split(m[2]))
        elif m := _CALL.fullmatch(line):
            self._call(m[2], m[3], shlex.split(m[4]), wait=not m[1])
        else:
            self._command(line)

    # ---- sockets

    def _make(self, name: str, kind: str, words: list[str]) -> None:
        args = pairs(words)
        opts = [(k, v) for k, v in args.items() if k.split("_")[0] in ("SO", "IP", "TCP")]
        plain = [w for w in words if "=" not in w and w not in ("noreuse", "blocking", "nolisten")]
        b = self.bench
        b.socket(name)
        if kind == "listen":
            if "noreuse" not in args:
                b.setsockopt(name, "SO_REUSEADDR", 1)
            self.port = int(plain[0])
        for key, value in opts:
            b.setsockopt(name, key, options.value(value))
        if kind == "listen":
            b.bind(name, f"{args.get('addr', '0.0.0.0')}:{self.port}")
            if "nolisten" not in args:
                b.listen(name, int(plain[1]) if len(plain) > 1 else 10)
        elif plain:
            b.bind(name, plain[0])
        if "blocking" not in args:
            b.setblocking(name, False)

    def _call(self, name: str, call: str, words: list[str], wait: bool) -> None:
        b, flags = self.bench, [w for w in words if w.startswith("MSG_")]
        rest = [w for w in words if not w.startswith("MSG_")]
        match call:
            case "accept":
                if b.accept(name, rest[0] if rest else "C0", wait) and wait and "blocking" not in rest:
                    b.setblocking(rest[0] if rest else "C0", False)
            case "recv":
                b.recv(name, int(rest[0]) if rest else 65536, flags, wait)
            case "send":
                b.send(name, rest[0].encode() if rest and not rest[0].isdigit() else b"x" * int(rest[0]), flags, wait)
            case "close":
                b.close(name, wait)
            case "shutdown":
                b.shutdown(name, rest[0])
            case "setsockopt":
                for key, value in pairs(rest).items():
                    b.setsockopt(name, key, options.value(value))
            case "getsockopt":
                b.getsockopt(name, rest[0], int(rest[1]) if len(rest) > 1 else 4)
            case "info":
                b.getsockopt(name, "TCP_INFO", 280)
            case "error":
                b.getsockopt(name, "SO_ERROR")
            case "connect":
                b.connect(name, rest[0])
            case "bind":
                b.bind(name, rest[0])
            case "listen":
                b.listen(name, int(rest[0]))
            case "poll":
                b.poll([name, *rest], EVENTS)
            case "name":
                b.getsockname(name)
            case "peer":
                b.getpeername(name)
            case "block":
                b.setblocking(name, True)
            case "nonblock":
                b.setblocking(name, False)
            case _:
                raise errors.ScenarioError(f"unknown call {call}")

    # ---- endpoints

    def client(self, name: str) -> Client:
        if name not in self.clients:
            n = len(self.clients)
            self.clients[name] = Client(self.bench, name, "192.0.2.2", FIRST_PORT + n, self.here, self.port, 1000 * (n + 1))
        return self.clients[name]

    def _client(self, name: str, words: list[str]) -> None:
        self.bench.quick = "quick" in words
        times = next((int(w[6:]) for w in words if w.startswith("times=")), 1)
        try:
            for _ in range(times):
                self._verb(name, [w for w in words if w != "quick" and not w.startswith("times=")])
        finally:
            self.bench.quick = False

    def _verb(self, name: str, words: list[str]) -> None:
        verb, rest = words[0], words[1:]
        if verb == "from":
            source, sport = options.address(rest[0])
            dest, dport = options.address(rest[2]) if len(rest) > 2 else (self.here, self.port)
            dest = self.here if dest == "0.0.0.0" else dest
            self.clients[name] = Client(self.bench, name, source, sport, dest, dport, 1000 * (len(self.clients) + 1))
            return
        c = self.client(name)
        match verb:
            case "syn":
                c.syn(pairs(rest))
            case "open":
                args = pairs(rest)
                c.syn(args)
                if c.isn_p is not None:
                    last = {k: v for k, v in args.items() if k in ("tos", "ttl", "win", "nots", "src")}
                    c.segment({"flags": "A", **last} if c.ts is not None else {"flags": "A", "nots": "", **last})
            case "synack":
                c.synack(pairs(rest))
            case "ack" | "rst" | "fin":
                flags = {"ack": "A", "rst": "R", "fin": "FA"}[verb]
                c.segment({"flags": flags, **pairs(rest)})
            case "data":
                c.segment({"flags": "PA", "data": rest[0], **pairs(rest[1:])})
            case "seg":
                c.segment({"flags": rest[0], **pairs(rest[1:])})
            case "icmp":
                c.icmp(rest[0], pairs(rest[1:]))
            case "default":
                c.defaults = pairs(rest)
            case "expect":
                self._expect(c, pairs(rest))
            case _:
                raise errors.ScenarioError(f"unknown verb {verb}")

    @staticmethod
    def _expect(c: Client, words: dict[str, str]) -> None:
        """A guard of the scenario's own sense: that the kernel has sent so much."""
        if "seen" in words and c.seen != int(words["seen"]):
            raise errors.ScenarioError(f"the kernel has sent {c.seen} bytes")

    # ---- everything else

    def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        b = self.bench
        simple: dict[str, Callable[[], None]] = {
            "wait": lambda: b.wait(float(rest)), "until": lambda: b.wait_until(float(rest)), "mark": lambda: b.mark(rest or "mark"),
            "ss": lambda: b.ss(rest or "-tan"), "get": lambda: b.sysctl_get(rest), "route": lambda: b.route(rest),
            "ss_text": lambda: b.text("ss", rest), "netstat_text": lambda: b.text("netstat", rest),
            "link": lambda: b.link(int(rest)), "note": lambda: b.note(rest), "join": lambda: b.join(),
            "addr": lambda: b.address(*rest.split(" ", 1)),
            "here": lambda: setattr(self, "here", rest), "port": lambda: setattr(self, "port", int(rest)),
        }
        if word in simple:
            simple[word]()
        elif word == "sysctl":
            name, _, value = rest.partition("=")
            b.sysctl(full_name(name.strip()), value.strip())
        elif word in ("ip", "icmp", "udp", "proto"):
            self._packet(word, shlex.split(rest))
        else:
            raise errors.ScenarioError("no such command")

    def _packet(self, word: str, words: list[str]) -> None:
        args = pairs(words[1:] if word == "icmp" else words)
        data = build_data(args.get("data", ""))
        for _ in range(int(args.get("times", "1"))):
            if word == "icmp":
                kind, _, code = words[0].partition("/")
                rest = bytes.fromhex(args.get("rest", "00010001")) + data
                whole = build.icmp(ip_fields({"ipfrag": "0", **args}, "192.0.2.2", self.here, build.ICMP), int(kind), int(code or 0), rest,
                                   "badsum" in args)
            elif word == "udp":
                whole = build.udp(ip_fields(args, "192.0.2.2", self.here, build.UDP), int(args.get("sport", "5000")),
                                  int(args.get("dport", "7")), data)
            else:
                whole = build.ip(ip_fields(args, "192.0.2.2", self.here), data)
            if "trunc" in args:
                whole = whole[:int(args["trunc"])]
            pieces = build.fragments(whole, int(args["frag"])) if "frag" in args else [whole]
            only = [int(i) for i in args["only"].split(",")] if "only" in args else range(len(pieces))
            for i in only:
                self.bench.inject(pieces[i])


def build_data(text: str) -> bytes:
    if text.startswith("hex:"):
        return bytes.fromhex(text[4:])
    return b"x" * int(text) if text.isdigit() else text.encode()


def full_name(name: str) -> str:
    """`tcp_sack` -> net.ipv4.tcp_sack; a name with dots stands as it is."""
    if name.startswith("net."):
        return name
    return f"net.{name}" if name.startswith(("core.", "ipv4.")) else f"net.ipv4.{name}"
