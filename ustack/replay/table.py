"""Socket tables (`ss`) and TCP_INFO of the stack against recorded ones.

Compared is everything but what the lab measured: times, rates, addresses of kernel objects. `rto` may
differ by one tick (doubled with each backoff, as the timeout itself), the remaining time of a timer by the
tolerance of timers, `f` of skmem (free pages in hand) is left out. Rows are a set: the order in which a
kernel walks its hash is not fixed.

A timer that the stack fired shortly before may fire later in the kernel (`timing`), so each row may also
look as it did before any of the doubtful timers; `before` holds those earlier tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .timing import EARLY, MS, lateness

Row = Mapping[str, Any]
Fault = tuple[str, str, str]

TICK_MS = 4
MEASURED_WORDS = frozenset({
    "ino", "sk", "cgroup", "uid", "<->", "rtt", "minrtt", "rcv_rtt", "send", "pacing_rate", "delivery_rate",
    "lastsnd", "lastrcv", "lastack", "busy", "rwnd_limited", "sndbuf_limited", "bbr",
})
MEASURED_FIELDS = frozenset({
    "rtt_us", "rttvar_us", "min_rtt_us", "rcv_rtt_us", "last_data_sent_ms", "last_ack_sent_ms",
    "last_data_recv_ms", "last_ack_recv_ms", "pacing_rate", "delivery_rate", "busy_time_us",
    "rwnd_limited_us", "sndbuf_limited_us", "total_rto_time_ms",
})
_TWO_WORDS = frozenset({"send", "pacing_rate", "delivery_rate"})
_TIMER = re.compile(r"\((\w+),([^,]*),(\d+)\)")
_LEFT = re.compile(r"(?:(?P<min>\d+)min)?(?:(?P<sec>\d+)(?:sec|\.(?=\d)))?(?:(?P<ms>\d+)ms)?")


def words(info: str) -> list[tuple[str, str]]:
    """The rest of an ss line as (key, value); a bare word has an empty value."""
    out: list[tuple[str, str]] = []
    parts = iter(info.split())
    for part in parts:
        if part in _TWO_WORDS:
            out.append((part, next(parts, "")))
        else:
            key, _, value = part.partition(":")
            out.append((key, value))
    return out


def remaining(text: str) -> tuple[int, int]:
    """(milliseconds, granularity) of a remaining time as ss writes it."""
    m = _LEFT.fullmatch(text)
    if m is None:
        return 0, 0
    minutes, seconds, ms = (int(m[g] or 0) for g in ("min", "sec", "ms"))
    grain = 1
    if minutes > 9:
        grain = 60_000
    elif minutes or (seconds and not m["ms"]):
        grain = 1000
    return minutes * 60_000 + seconds * 1000 + ms, grain


def _timer_fault(want: str, have: str, now: int) -> Fault | None:
    a, b = _TIMER.fullmatch(want), _TIMER.fullmatch(have)
    if a is None or b is None:
        return None if want == have else ("timer", want, have)
    if (a[1], a[3]) != (b[1], b[3]):
        return "timer", want, have
    (left_a, grain_a), (left_b, grain_b) = remaining(a[2]), remaining(b[2])
    early = EARLY // MS + (TICK_MS << min(int(a[3]), 10)) + max(grain_a, grain_b)
    late = lateness(0, now) // MS + max(grain_a, grain_b)
    return None if left_b - early <= left_a <= left_b + late else ("remaining time of the timer", want, have)


def _rto_fault(want: str, have: str, backoff: int, rtt: str = "", my_rtt: str = "") -> Fault | None:
    """One tick apart at most, and what the two measured RTTs (srtt/mdev in ms) explain: an RTO is srtt + 4 mdev or more."""
    apart = 0.0
    if "/" in rtt and "/" in my_rtt:
        (srtt, mdev), (my_srtt, my_mdev) = (map(float, r.split("/")) for r in (rtt, my_rtt))
        apart = abs(srtt - my_srtt) + 4 * abs(mdev - my_mdev)
    if abs(float(want or 0) - float(have or 0)) <= (TICK_MS + apart) * (1 << min(backoff, 10)):
        return None
    return "rto", want, have


def _skmem(text: str) -> str:
    return re.sub(r",f-?\d+", "", text)


def info_fault(want: str, have: str, now: int) -> Fault | None:
    """The first word of the rest of the line that differs."""
    a = [(k, v) for k, v in words(want) if k not in MEASURED_WORDS]
    b = [(k, v) for k, v in words(have) if k not in MEASURED_WORDS]
    backoff = int(dict(a).get("backoff", 0))
    mine = dict(b)
    for key, value in a:
        if key not in mine:
            return key, value or "there", "not there"
        fault: Fault | None = None
        if key == "timer":
            fault = _timer_fault(value, mine[key], now)
        elif key == "rto":
            fault = _rto_fault(value, mine[key], backoff, dict(words(want)).get("rtt", ""), dict(words(have)).get("rtt", ""))
        elif key == "skmem":
            fault = None if _skmem(value) == _skmem(mine[key]) else (key, value, mine[key])
        elif value != mine[key]:
            fault = (key, value, mine[key])
        if fault:
            return fault
    for key, value in b:
        if key not in dict(a):
            return key, "not there", value or "there"
    if [k for k, _ in a] != [k for k, _ in b]:
        return "order of the words", " ".join(k for k, _ in a), " ".join(k for k, _ in b)
    return None


def row_text(row: Row) -> str:
    text = f"{row['state']} {row['recvq']} {row['sendq']} {row['local']} {row['peer']}"
    return text + (f" {row['info']}" if row.get("info") else "")


def row_fault(want: Row, have: Row, now: int) -> Fault | None:
    for key, name in (("state", "state"), ("recvq", "Recv-Q"), ("sendq", "Send-Q")):
        if want[key] != have[key]:
            return name, str(want[key]), str(have[key])
    return info_fault(want.get("info", ""), have.get("info", ""), now)


def _place(row: Row) -> tuple[str, str]:
    return row["local"], row["peer"]


def table_fault(want: Sequence[Row], have: Sequence[Row], before: Iterable[Sequence[Row]],
                now: int) -> Fault | None:
    """The first row that differs, or None."""
    earlier = [list(t) for t in before]
    left = list(have)
    unmatched: list[Row] = []
    for row in want:
        same = next((r for r in left if _place(r) == _place(row) and row_fault(row, r, now) is None), None)
        if same is not None:
            left.remove(same)
        else:
            unmatched.append(row)
    for row in unmatched:
        now_there = next((r for r in left if _place(r) == _place(row)), None)
        was_there = any(_place(r) == _place(row) and row_fault(row, r, now) is None
                        for t in earlier for r in t)
        if was_there:
            if now_there is not None:
                left.remove(now_there)
            continue
        if now_there is None:
            return "row of the table", row_text(row), "no such row"
        fault = row_fault(row, now_there, now)
        what, expected, got = fault if fault else ("row", row_text(row), row_text(now_there))
        return f"{what} of {row['local']} - {row['peer']}", expected, got
    for row in left:
        if all(any(_place(r) == _place(row) for r in t) for t in earlier):
            return "row of the table", "no such row", row_text(row)
    return None


_MEASURED = re.compile(
    r"(?P<timer>timer:\(\w+,)[^,]*|(?P<ino>\bino:)[1-9]\d*|(?P<key>\b(?:sk|cgroup|rto|rtt|minrtt|rcv_rtt|lastsnd|lastrcv|lastack|busy|rwnd_limited|"
    r"sndbuf_limited|users):|\b(?:send|pacing_rate|delivery_rate) |\bbw:|\bmrtt:)[^\s,]+|"
    r"(?P<left>\((?=\d+\.\d\d/))[\d.]+")
_HARDLY_BUSY = re.compile(r" busy:[0-8]ms\b")     # counted in ticks, and left out when none has passed


def masked(text: str) -> list[str]:
    """What ss printed, for comparison: its header, then its rows in the order of their text; what is measured (times, rates, inodes, cookies, the
    cgroup) is replaced by a star, and where there was any the filling-up behind it goes, since its width hangs on the same figures."""
    found = 0

    def star(m: re.Match[str]) -> str:
        nonlocal found
        found += 1
        return (m["timer"] or m["ino"] or m["key"] or m["left"]) + "*"

    lines = [_MEASURED.sub(star, _HARDLY_BUSY.sub("", line)) for line in text.split("\n")]
    if found:
        lines = [line.rstrip(" ") for line in lines]
    rows: list[str] = []
    for line in lines:
        if line.startswith("\t") and rows:
            rows[-1] += "\n" + line
        elif line:
            rows.append(line)
    header = rows[:2] if text.startswith("Active ") else rows[:1] if "Local Address:Port" in text else []
    return header + sorted(rows[len(header):])


def text_fault(want: str, have: str) -> Fault | None:
    """The first line in which two outputs of ss differ, measured values aside."""
    a, b = masked(want), masked(have)
    for x, y in zip(a, b, strict=False):
        if x != y:
            return "line of ss", x, y
    if len(a) != len(b):
        return "lines of ss", str(len(a)), str(len(b))
    return None


def split_pipe(args: str) -> tuple[str, list[str]]:
    """ss's own words and the commands behind it."""
    own, *rest = (p.strip() for p in args.split("|"))
    return own, rest


def piped(rows: Sequence[Row], commands: Iterable[str]) -> list[Row] | str:
    """What the commands behind a pipe leave of the table: rows, or a text."""
    kept = list(rows)
    for command in commands:
        match command.split():
            case ["wc", "-l"]:
                return str(len(kept))
            case ["grep", "-v", word]:
                kept = [r for r in kept if word not in row_text(r)]
            case ["grep", "-c", word]:
                return str(sum(word in row_text(r) for r in kept))
            case ["grep", word]:
                kept = [r for r in kept if word in row_text(r)]
            case _:
                raise ValueError(f"no emulation of the command {command!r} behind ss")
    return kept


def fields_fault(want: Mapping[str, int], have: Mapping[str, int], tolerance: Mapping[str, float] = MappingProxyType({})) -> Fault | None:
    """The first field of a TCP_INFO that differs by more than its tolerance: an int is absolute (default 0), a float is a fraction of the
    recorded value. Measured fields count only if they have one."""
    for name, value in want.items():
        if name in MEASURED_FIELDS and name not in tolerance:
            continue
        got = have.get(name)
        if got is None:
            return f"tcp_info {name}", str(value), "not there"
        allowed = tolerance.get(name, 0)
        if isinstance(allowed, float):
            allowed *= value
        if name == "rto_us":
            measured = abs(want.get("rtt_us", 0) - have.get("rtt_us", 0)) + 4 * abs(want.get("rttvar_us", 0) - have.get("rttvar_us", 0))
            if abs(value - got) > ((TICK_MS * 1000 + measured) << min(want.get("backoff", 0), 10)) + allowed:
                return f"tcp_info {name}", str(value), str(got)
        elif abs(value - got) > allowed:
            return f"tcp_info {name}", str(value), str(got)
    return None

