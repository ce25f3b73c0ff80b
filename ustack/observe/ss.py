"""The socket table as iproute2's `ss` prints it, from the rows of `Engine.dump()`.

`rows(dump, args)` takes ss's own words (`-tan state syn-recv sport = :80`) and gives one dict per
socket: {"state", "recvq", "sendq", "local", "peer"} and "info" when there is a rest of the line (timers
with -o, identity with -e, memory with -m, TCP internals with -i). `text()` is the plain form. Formats,
order of the words and the conditions under which a word is left out are those of ss 6.1, whose
peculiarities (`3.840ms` for 3.84 s) are kept since readers and scripts know them.

A row of the dump: kind "listen"|"sock"|"req"|"tw", state (Linux's number), laddr, lport, faddr, fport,
recvq, sendq, timer (ss's name or None), timer_expires_ns (what is left of it), retrans; sockets besides
info (the bytes of TCP_INFO), meminfo (those of SO_MEMINFO), cc (number or name), uid, handle.
"""

from __future__ import annotations

import operator
import shlex
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .tcp_info import (
    OPT_ECN,
    OPT_ECN_SEEN,
    OPT_SACK,
    OPT_SYN_DATA,
    OPT_TIMESTAMPS,
    OPT_WSCALE,
    decode,
)

Row = Mapping[str, Any]

STATES = {1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT",
          7: "UNCONN", 8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECV"}
_WORDS = {"established": 1, "syn-sent": 2, "syn-recv": 3, "fin-wait-1": 4, "fin-wait-2": 5, "time-wait": 6,
          "closed": 7, "close": 7, "close-wait": 8, "last-ack": 9, "listening": 10, "listen": 10,
          "closing": 11}
_ALL = frozenset(range(1, 12))
_CONNECTED = _ALL - {10, 7, 6, 3}
_GROUPS = {"all": _ALL, "connected": _ALL - {10, 7}, "synchronized": _ALL - {10, 7, 2},
           "bucket": frozenset({3, 6}), "big": _ALL - {3, 6}}
CONGESTION_CONTROLS = {0: "reno", 1: "cubic", 2: "bbr"}
LISTEN = 10
FLAGS = "talnoiemH46pr"


class UsageError(ValueError):
    """The words are not ss's."""


@dataclass
class Query:
    """What the words of the command line ask for."""

    flags: set[str] = field(default_factory=set)
    states: frozenset[int] = _CONNECTED
    matches: list[Callable[[Row], bool]] = field(default_factory=list)

    def wants(self, row: Row) -> bool:
        state = 3 if row["state"] == 12 else row["state"]
        return state in self.states and all(m(row) for m in self.matches)


def _states(word: str) -> frozenset[int]:
    if word in _GROUPS:
        return _GROUPS[word]
    if word in _WORDS:
        return frozenset({_WORDS[word]})
    raise UsageError(f"ss: wrong state name: {word}")


_OPS: dict[str, Callable[[int, int], bool]] = {
    word: test for words, test in (
        ("= == eq", operator.eq), ("!= ne neq", operator.ne), ("> gt", operator.gt), ("< lt", operator.lt),
        (">= ge geq", operator.ge), ("<= le leq", operator.le)) for word in words.split()
}


def _endpoint(side: str, op: str, text: str) -> Callable[[Row], bool]:
    """`sport = :80`, `dst 192.0.2.2:80` and their kin as a test on a row."""
    addr_key, port_key = ("laddr", "lport") if side in ("sport", "src") else ("faddr", "fport")
    if ":" in text:
        host, _, port = text.rpartition(":")
    else:
        host, port = ("", text) if side.endswith("port") else (text, "")
    if port not in ("", "*") and not port.isdigit():
        raise UsageError(f"ss: {port!r} is not a port")
    wanted = int(port) if port not in ("", "*") else None
    compare = _OPS[op]

    def test(row: Row) -> bool:
        value = row[port_key]
        if host not in ("", "*") and row[addr_key] != host:
            return compare is operator.ne
        if wanted is None:
            return True
        return compare(value, wanted)
    return test


def parse(args: str) -> Query:
    """The words of an ss command line (without pipes)."""
    query = Query()
    words = shlex.split(args)
    chosen: frozenset[int] | None = None
    i = 0
    while i < len(words):
        word = words[i]
        if word.startswith("-") and not word.startswith("--"):
            for letter in word[1:]:
                if letter not in FLAGS:
                    raise UsageError(f"ss: unknown option -{letter}")
                query.flags.add(letter)
            i += 1
        elif word in ("state", "exclude") and i + 1 < len(words):
            states = _states(words[i + 1])
            if word == "state":
                chosen = (chosen or frozenset()) | states
            else:
                chosen = (chosen if chosen is not None else _ALL) - states
            i += 2
        elif word in ("sport", "dport", "src", "dst") and i + 1 < len(words):
            op = words[i + 1] if words[i + 1] in _OPS else "="
            i += 2 if words[i + 1] in _OPS else 1
            if i >= len(words):
                raise UsageError(f"ss: {word} needs a value")
            query.matches.append(_endpoint(word, op, words[i]))
            i += 1
        elif word in ("and", "&", "&&", "(", ")"):
            i += 1
        else:
            raise UsageError(f"ss: what is {word!r}?")
    if chosen is not None:
        query.states = chosen
    elif "a" in query.flags:
        query.states = _ALL
    elif "l" in query.flags:
        query.states = frozenset({LISTEN, 7})
    return query


def ms_timer(ms: int) -> str:
    """A remaining time as ss writes it: `1min`, `3.840ms` (that is 3.84 s), `960ms`, `59sec`; empty for
    none."""
    ms = max(0, ms)
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    out = ""
    if minutes:
        ms = 0
        out = f"{minutes}min"
        if minutes > 9:
            seconds = 0
    if seconds:
        if seconds > 9:
            ms = 0
        out += f"{seconds}{'.' if ms else 'sec'}"
    if ms:
        out += f"{ms:03d}ms"
    return out


def _bandwidth(bits: float, numeric: bool) -> str:
    if numeric:
        return f"{bits:.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits > size:
            return f"{bits / size:.3g}{unit}"
    return f"{bits:g}"


def _share(part: int, whole: int) -> str:
    return f"{part // 1000}ms({100.0 * part / whole if whole else 0.0:.1f}%)"


def _option_words(options: int) -> Iterable[str]:
    """What was negotiated; ss shows it with -o or -e only."""
    for bit, word in ((OPT_TIMESTAMPS, "ts"), (OPT_SACK, "sack"), (OPT_ECN, "ecn"), (OPT_ECN_SEEN, "ecnseen"),
                      (OPT_SYN_DATA, "fastopen")):
        if options & bit:
            yield word


def _tcp_words(info: Mapping[str, int], cc: str, listening: bool) -> Iterable[str]:
    """Congestion control and the figures up to the segment counts."""
    options = info["options"]
    if cc:
        yield cc
    if options & OPT_WSCALE:
        yield f"wscale:{info['snd_wscale']},{info['rcv_wscale']}"
    if info["rto_us"] and info["rto_us"] != 3_000_000:
        yield f"rto:{info['rto_us'] / 1000:g}"
    if info["backoff"]:
        yield f"backoff:{info['backoff']}"
    if info["rtt_us"]:
        yield f"rtt:{info['rtt_us'] / 1000:g}/{info['rttvar_us'] / 1000:g}"
    if info["ato_us"]:
        yield f"ato:{info['ato_us'] / 1000:g}"
    for key, word in (("snd_mss", "mss"), ("pmtu", "pmtu"), ("rcv_mss", "rcvmss"), ("advmss", "advmss"),
                      ("snd_cwnd", "cwnd")):
        if info[key]:
            yield f"{word}:{info[key]}"
    if not listening and info["snd_ssthresh"] < 0xFFFF:
        yield f"ssthresh:{info['snd_ssthresh']}"
    for key in ("bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received", "segs_out", "segs_in",
                "data_segs_out", "data_segs_in"):
        if info.get(key):
            yield f"{key}:{info[key]}"


def _rate_words(info: Mapping[str, int], numeric: bool) -> Iterable[str]:
    if info["rtt_us"] and info["snd_mss"] and info["snd_cwnd"]:
        yield f"send {_bandwidth(info['snd_cwnd'] * info['snd_mss'] * 8e6 / info['rtt_us'], numeric)}bps"
    for key in ("last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms"):
        if info[key]:
            word = {"last_data_sent_ms": "lastsnd", "last_data_recv_ms": "lastrcv"}.get(key, "lastack")
            yield f"{word}:{info[key]}"
    pacing = info["pacing_rate"]
    if pacing and pacing != 0xFFFFFFFFFFFFFFFF:
        word = f"pacing_rate {_bandwidth(pacing * 8.0, numeric)}bps"
        limit = info["max_pacing_rate"]
        if limit and limit != 0xFFFFFFFFFFFFFFFF:
            word += f"/{_bandwidth(limit * 8.0, numeric)}bps"
        yield word
    if info["delivery_rate"]:
        yield f"delivery_rate {_bandwidth(info['delivery_rate'] * 8.0, numeric)}bps"


def _state_words(info: Mapping[str, int], listening: bool) -> Iterable[str]:
    """Delivery, limits, the retransmission state and the receive side."""
    for key in ("delivered", "delivered_ce"):
        if info.get(key):
            yield f"{key}:{info[key]}"
    if info["delivery_rate_app_limited"]:
        yield "app_limited"
    if info["busy_time_us"]:
        yield f"busy:{info['busy_time_us'] // 1000}ms"
        for key, word in (("rwnd_limited_us", "rwnd_limited"), ("sndbuf_limited_us", "sndbuf_limited")):
            if info[key]:
                yield f"{word}:{_share(info[key], info['busy_time_us'])}"
    if info["unacked"]:
        yield f"unacked:{info['unacked']}"
    if info["retrans"] or info["total_retrans"]:
        yield f"retrans:{info['retrans']}/{info['total_retrans']}"
    if info["lost"]:
        yield f"lost:{info['lost']}"
    if info["sacked"] and not listening:
        yield f"sacked:{info['sacked']}"
    for key in ("dsack_dups", "fackets"):
        if info.get(key):
            yield f"{key}:{info[key]}"
    if info["reordering"] != 3:
        yield f"reordering:{info['reordering']}"
    if info.get("reord_seen"):
        yield f"reord_seen:{info['reord_seen']}"
    if info["rcv_rtt_us"]:
        yield f"rcv_rtt:{info['rcv_rtt_us'] / 1000:g}"
    for key, word in (("rcv_space", "rcv_space"), ("rcv_ssthresh", "rcv_ssthresh"),
                      ("notsent_bytes", "notsent")):
        if info[key]:
            yield f"{word}:{info[key]}"
    if info["min_rtt_us"] not in (0, 0xFFFFFFFF):
        yield f"minrtt:{info['min_rtt_us'] / 1000:g}"
    for key in ("rcv_ooopack", "snd_wnd"):
        if info.get(key):
            yield f"{key}:{info[key]}"


def tcp_text(raw: bytes, cc: str, *, numeric: bool = True, options: bool = True) -> str:
    """The words of `ss -i` for one socket's TCP_INFO; with the negotiated options as -o and -e add them."""
    info = decode(raw.ljust(232, b"\0"))
    listening = info["state"] == LISTEN
    return " ".join([*(_option_words(info["options"]) if options else ()), *_tcp_words(info, cc, listening), *_rate_words(info, numeric),
                     *_state_words(info, listening)])


def _identity(row: Row) -> str:
    words = [f"uid:{row['uid']}"] if row.get("uid") else []
    if row.get("ino"):
        words.append(f"ino:{row['ino']}")
    words.append(f"sk:{row.get('sk', row.get('handle', 0)):x}")
    return " ".join([*words, "cgroup:/", "<->"])


def skmem_text(values: Iterable[int]) -> str:
    names = ("r", "rb", "t", "tb", "f", "w", "o", "bl", "d")
    return "skmem:(" + ",".join(f"{n}{v}" for n, v in zip(names, values, strict=False)) + ")"


def info_text(row: Row, flags: set[str]) -> str:
    """The rest of the line: what -o, -e, -m and -i add."""
    words = []
    if "o" in flags and row.get("timer"):
        left = ms_timer((row["timer_expires_ns"] or 0) // 1_000_000)
        words.append(f"timer:({row['timer']},{left},{row.get('retrans', 0)})")
    real = row["kind"] in ("sock", "listen")
    if "e" in flags and real:
        words.append(_identity(row))
    if "m" in flags and row.get("meminfo"):
        raw = row["meminfo"]
        words.append(skmem_text(struct.unpack(f"={len(raw) // 4}I", raw)))
    if "i" in flags and real and row.get("info"):
        cc = row.get("cc", "")
        name = CONGESTION_CONTROLS.get(cc, "") if isinstance(cc, int) else cc
        words.append(tcp_text(row["info"], name, numeric="n" in flags, options=bool(flags & {"o", "e"})))
    return " ".join(w for w in words if w)


def _place(addr: str, port: int) -> str:
    return f"{addr}:{port or '*'}"


def rows(dump: Iterable[Row], args: str = "-tan") -> list[dict[str, Any]]:
    """The rows that `ss ARGS` shows, listeners first."""
    query = parse(args)
    found = sorted((r for r in dump if query.wants(r)), key=lambda r: r["state"] != LISTEN)
    out = []
    for r in found:
        row = {"state": STATES[r["state"]], "recvq": r["recvq"], "sendq": r["sendq"],
               "local": _place(r["laddr"], r["lport"]), "peer": _place(r["faddr"], r["fport"])}
        info = info_text(r, query.flags)
        if info:
            row["info"] = info
        out.append(row)
    return out


def text(table: Iterable[Mapping[str, Any]], *, header: bool = True) -> str:
    """The table as columns."""
    lines = [("State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port", "")] if header else []
    lines += [(r["state"], str(r["recvq"]), str(r["sendq"]), r["local"], r["peer"], r.get("info", ""))
              for r in table]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(" ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[5]]).rstrip()
                     for line in lines) + "\n"
