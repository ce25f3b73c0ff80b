"""Random scenarios from a seed: the search for differences that no one thought of.

A family is a function from a random generator to the lines of one scenario (`script` says what they mean); family, seed and number name a
scenario for ever. Nothing here knows what the right answer is: the kernel does.

Invariant: what a family makes keeps clear of the moments that the kernel itself decides either way (two timers of one instant, a packet
within a few ms of a timer): waits are taken from lists, and `scripts/hunt` plays a scenario that differs again before it believes it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from .hunt_words import (
    IP_OPTIONS,
    LONG_WAITS,
    ROUTES,
    SYSCTLS,
    TFO_COOKIE,
    TFO_KEY,
    VALUES,
    Rng,
    icmp_words,
    listener_options,
    maybe,
    options,
    segment_words,
    setting,
    syn_words,
    sysctls,
    wait,
    words,
)
from .scenario import Scenario

_FIN = re.compile(r": (fin\b|seg \w*F)")
_GUARDED = re.compile(r"\w+\.[a-z]+|\w+: icmp")
CALLS = ("recv", "recv 3", "recv 5 MSG_PEEK", "recv 1 MSG_OOB", "send 1", "send 100", "poll", "error", "shutdown SHUT_WR", "shutdown SHUT_RD", "peer")
HOMES = ("0.0.0.0", "0.0.0.0", "192.0.2.1", "192.0.2.3", "127.0.0.1", "192.0.2.255", "203.0.113.5", "224.0.0.1")
ODD_TO = ("192.0.2.255", "255.255.255.255", "224.0.0.1", "0.0.0.0", "127.0.0.1", "192.0.2.9", "203.0.113.1", "240.0.0.1")
ODD_FROM = ("192.0.2.255", "0.0.0.0", "127.0.0.1", "224.0.0.5", "240.1.1.1", "255.255.255.255", "192.0.2.1", "203.0.113.4")
THIRDS = ("ack", "ack", "data 10", "fin", "ack nots", "seg PAUEW data=3 urg=2", "seg SA", "seg RA", "seg FA data=4")
TWISTS = ("ecr=+1", "ecr=-1", "ecr=+64", "ecr=#0", "ts=#1", "seq=2", "seq=0", "seq=4", "seq=-3", "seq=5", "ack=2", "ack=5", "ack=0", "win=0", "tos=3")
LOOKS = ("name", "peer", "poll", "error", "recv", "send 5", "getsockopt SO_ACCEPTCONN", "info")


# ---- families


def syn(r: Rng) -> tuple[dict[str, str], list[str]]:
    """SYNs of every make against a listener of every make, and the child that comes of it."""
    out = []
    if r.random() < 0.25:
        out.append(f"route change 192.0.2.0/24 dev tun0 {r.choice(ROUTES)}")
    if r.random() < 0.1:
        out.append(f"link {r.choice([576, 1400, 9000, 296, 65535])}")
    out.append(words("L0 = listen 8000 10", listener_options(r, 0.5, 3)))
    for n in range(1, r.randint(2, 4)):
        out += [
            f"c{n}: syn {syn_words(r)}",
            "mark s",
            f"c{n}: {r.choice(['ack', 'ack', 'data 100', 'seg EA', 'fin', 'ack nots', 'seg PAWE data=5'])}",
            f"L0.accept C{n}",
        ]
        if r.random() < 0.5:
            out += [f"C{n}.info", f"C{n}.getsockopt TCP_MAXSEG", f"C{n}.getsockopt SO_RCVBUF", f"C{n}.getsockopt TCP_WINDOW_CLAMP"]
        if r.random() < 0.3:
            out += [f"C{n}.getsockopt TCP_SAVED_SYN 200"]
        if r.random() < 0.5:
            out += [f"C{n}.send {r.choice([1, 100, 3000])}", f"c{n}: ack"]
        out += [f"c{n}: rst", *wait(r, 0.2)]
    out.append("ss -tan")
    return sysctls(r), out


def request(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Any segments at a half-open connection."""
    out = [words(f"L0 = listen 8000 {r.choice([0, 1, 10])}", maybe(r, 0.25, f"TCP_DEFER_ACCEPT={r.choice([1, 3, 5])}"), listener_options(r, 0.15))]
    if r.random() < 0.3:
        out += ["c9: open", "c8: open"][: r.randint(1, 2)]
    out += [f"c1: syn {syn_words(r) if r.random() < 0.3 else maybe(r, 0.4, r.choice(['nots', 'noopt', 'nows', 'nosack']))}"]
    for _ in range(r.randint(1, 6)):
        k = r.random()
        if k < 0.12:
            out.append(
                words(
                    "c1: syn again",
                    maybe(r, 0.5, f"ts={r.choice(['#999', '+0', '+1', '+5000', '-1'])}"),
                    maybe(r, 0.3, f"seq={r.choice(['0', '1', '5', '-1', '70000'])}"),
                    maybe(r, 0.2, "data=5"),
                    maybe(r, 0.2, "mss=600"),
                    maybe(r, 0.2, r.choice(["nots", "noopt"])),
                )
            )
        elif k < 0.2:
            out.append(f"c1: {icmp_words(r)}")
        elif k < 0.25:
            out.append(
                r.choice(
                    [
                        "L0.accept C8",
                        "L0.listen 0",
                        "L0.listen 5",
                        "L0.poll",
                        "L0.setsockopt TCP_DEFER_ACCEPT=3",
                        "L0.setsockopt TCP_MAXSEG=600",
                        "L0.setsockopt SO_RCVBUF=8192",
                    ]
                )
            )
        elif k < 0.28:
            out.append(
                setting(
                    r,
                    (
                        "tcp_abort_on_overflow",
                        "tcp_timestamps",
                        "tcp_invalid_ratelimit",
                        "tcp_syncookies",
                        "tcp_ecn",
                        "tcp_sack",
                        "tcp_window_scaling",
                    ),
                )
            )
        elif k < 0.29:
            out += ["L0.close", *maybe(r, 0.5, "L1 = listen 8000 5|").split("|")[:1]]
        else:
            out.append(f"c1: {segment_words(r)}")
        out += wait(r, 0.25)
    out += ["mark end-of-it", "ss -tan", "L0.accept C0", "c1: ack seq=1"]
    if r.random() < 0.4:
        out += ["wait 1.4", "c1: ack seq=1", "ss -tan"]
    return sysctls(
        r,
        0.4,
        2,
        (
            "tcp_abort_on_overflow",
            "tcp_timestamps",
            "tcp_invalid_ratelimit",
            "tcp_syncookies",
            "tcp_synack_retries",
            "tcp_challenge_ack_limit",
            "tcp_rmem",
            "tcp_rfc1337",
            "tcp_reflect_tos",
        ),
    ), [x for x in out if x]


def queues(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Many clients, both queues, timers, listen() again, somaxconn, close."""
    b = r.choice([0, 0, 1, 2, 3, 4, 8, 16])
    out = [
        words(f"L0 = listen 8000 {b}", maybe(r, 0.2, f"TCP_SYNCNT={r.choice([1, 2, 3])}"), maybe(r, 0.2, f"TCP_DEFER_ACCEPT={r.choice([1, 3, 5])}"))
    ]
    made, accepted, fresh = 0, 0, 0.0
    for _ in range(r.randint(4, 14)):
        k = r.random()
        if k < 0.35 or not made:
            n = r.choice([1, 1, 2, 3, 5, 8, 12])
            verb = r.choice(["syn", "syn", "open", "syn nots", "open noopt", "syn noopt"])
            out.append(f"c{made + 1}..c{made + n}: {verb}" if n > 1 else f"c{made + 1}: {verb}")
            made += n
        elif k < 0.55:
            out.append(
                f"c{r.randint(1, made)}: {r.choice(['ack', 'ack', 'data 10', 'fin', 'rst', 'syn again', 'ack ack=5', 'icmp 3/1', 'icmp 3/1 seq=0'])}"
            )
        elif k < 0.7:
            out.append(f"L0.accept C{accepted}")
            accepted += 1
        elif k < 0.78:
            out.append(f"L0.listen {r.choice([0, 1, 3, 10, -1])}")
        elif k < 0.84:
            out.append(setting(r, ("tcp_syncookies", "core.somaxconn", "tcp_max_syn_backlog", "tcp_abort_on_overflow", "tcp_synack_retries")))
        elif k < 0.9:
            out.append(r.choice(["ss -tan", "mark m", "L0.poll", "L0.info"]))
        else:
            if fresh < 6:
                w = r.choice((0.3, 0.61, *LONG_WAITS))
                fresh += w
                out.append(f"wait {w}")
    out += ["mark late", "ss -tan"]
    if r.random() < 0.3:
        out += [
            r.choice(["L0.close", "L0.shutdown SHUT_RD", "L0.shutdown SHUT_RDWR"]),
            "mark closed",
            "ss -tan",
            f"c{r.randint(1, made)}: ack",
            f"c{r.randint(1, made)}: syn again",
        ]
        if r.random() < 0.5:
            out += ["L1 = listen 8000 2", f"c{r.randint(1, made)}: ack", f"c{r.randint(1, made)}: syn again", "L1.accept C90"]
    if r.random() < 0.4:
        out += [f"wait {r.choice(LONG_WAITS)}", "ss -tan"]
    return sysctls(
        r,
        0.7,
        2,
        ("tcp_syncookies", "core.somaxconn", "tcp_max_syn_backlog", "tcp_abort_on_overflow", "tcp_synack_retries", "tcp_timestamps", "tcp_fastopen"),
    ), out


def cookies(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Cookies: given, brought back right and wrong."""
    out = [words(f"L0 = listen 8000 {r.choice([0, 1, 5])}", listener_options(r, 0.3))]
    if r.random() < 0.2:
        out.insert(0, f"route change 192.0.2.0/24 dev tun0 {r.choice(ROUTES)}")
    n = r.randint(1, 4)
    for i in range(1, n + 1):
        out.append(f"c{i}: syn {syn_words(r)}")
    for _ in range(r.randint(1, 5)):
        i = r.randint(1, n)
        k = r.random()
        if k < 0.15:
            out.append(
                setting(r, ("tcp_syncookies", "tcp_timestamps", "tcp_sack", "tcp_window_scaling", "tcp_ecn", "tcp_abort_on_overflow", "tcp_rmem"))
            )
        elif k < 0.5:
            out.append(f"c{i}: {r.choice(THIRDS)} {maybe(r, 0.3, r.choice(TWISTS))}")
        elif k < 0.9:
            out.append(f"c{i}: {segment_words(r)}")
        else:
            out.append(f"L0.accept C{r.randint(10, 99)}")
        out += wait(r, 0.2)
    out += ["mark acks", "ss -tan", "L0.accept C0", "C0.info" if r.random() < 0.6 else "L0.info", "L0.accept C1"]
    if r.random() < 0.5:
        out += ["C0.send 3000"]
    return sysctls(
        r, 0.5, 2, ("tcp_timestamps", "tcp_sack", "tcp_window_scaling", "tcp_ecn", "tcp_rmem", "tcp_abort_on_overflow", "tcp_reflect_tos")
    ) | {"tcp_syncookies": r.choice(["2", "2", "1"])}, out


def closing(r: Rng) -> tuple[dict[str, str], list[str]]:
    """A connection closed in some way, then TIME_WAIT, FIN_WAIT2, orphans and what comes for them."""
    o = r.choice(["", "", "noopt", "nots", "nows", "nosack"])
    out = [
        words("L0 = listen 8000 10", maybe(r, 0.15, f"TCP_LINGER2={r.choice([-1, 1, 2, 60])}"), maybe(r, 0.1, "SO_LINGER=1/0")),
        f"c1: open {o}",
        "L0.accept C0",
    ]
    if r.random() < 0.3:
        out += ["c1: data 10", *maybe(r, 0.5, "C0.recv|").split("|")[:1]]
    first = r.random()
    if first < 0.5:
        out += [r.choice(["C0.close", "C0.close", "C0.shutdown SHUT_WR", "C0.shutdown SHUT_RDWR"])]
        out += r.choice(
            [["c1: ack", "c1: fin"], ["c1: ack", "c1: fin"], ["c1: ack"], ["c1: fin"], ["c1: seg FA ack=1"], ["c1: seg FA ack=1", "c1: ack"], []]
        )
    elif first < 0.8:
        out += ["c1: fin", r.choice(["C0.close", "C0.shutdown SHUT_WR"]), *r.choice([["c1: ack"], []])]
    else:
        out += ["c1: fin", "C0.poll"]
    if r.random() < 0.15:
        out += ["L0.close"]
    out += ["mark closed", "ss -tan"]
    for _ in range(r.randint(1, 5)):
        if r.random() < 0.35:
            out.append(
                words(
                    "c1: syn again",
                    f"seq={r.choice(['0', '1', '2', '+0', '+1', '-1', '+100', '+100000', '-100000', '#4000000000'])}",
                    maybe(r, 0.6, f"ts={r.choice(['+0', '-1', '+1', '+1000', '-1000', '#0', '#4000000000'])}"),
                    maybe(r, 0.2, "nots"),
                    maybe(r, 0.1, "noopt"),
                    maybe(r, 0.1, "data=10"),
                    maybe(r, 0.1, f"flags={r.choice(['SP', 'SEW', 'SU'])}"),
                )
            )
        elif r.random() < 0.1:
            out.append(f"c1: {icmp_words(r)}")
        else:
            out.append(f"c1: {segment_words(r, True)}")
        out += wait(r, 0.3)
    out += ["mark after", "ss -tan", "L0.accept C1"]
    return sysctls(
        r,
        0.4,
        2,
        (
            "tcp_rfc1337",
            "tcp_fin_timeout",
            "tcp_max_tw_buckets",
            "tcp_invalid_ratelimit",
            "tcp_timestamps",
            "tcp_syncookies",
            "tcp_tw_reuse",
            "tcp_no_metrics_save",
            "tcp_challenge_ack_limit",
        ),
    ), [x for x in out if x]


def fastopen(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Fast Open: cookies right and wrong, queue limits, what happens to the child in SYN_RECV."""
    out = [
        words(
            f"L0 = listen 8000 {r.choice([0, 1, 10])}",
            maybe(r, 0.85, f"TCP_FASTOPEN={r.choice([1, 2, 5, 5])}"),
            maybe(r, 0.1, "TCP_FASTOPEN_NO_COOKIE=1"),
            maybe(r, 0.15, "TCP_DEFER_ACCEPT=3"),
            listener_options(r, 0.15),
        )
    ]
    if r.random() < 0.1:
        out.append("L0.setsockopt TCP_FASTOPEN_KEY=hex:000102030405060708090a0b0c0d0e0f")
    n = r.randint(1, 4)
    for i in range(1, n + 1):
        fo = r.choice(
            [
                f"fo={TFO_COOKIE}",
                f"fo={TFO_COOKIE}",
                f"fo={TFO_COOKIE}",
                "fo=",
                "foexp=",
                f"foexp={TFO_COOKIE}",
                "fo=0011223344556677",
                f"fo={TFO_COOKIE}00",
                "fo=00112233",
                "",
                f"opt={options(r)}",
            ]
        )
        out.append(
            words(
                f"c{i}: syn",
                fo,
                maybe(r, 0.7, f"data={r.choice([1, 5, 100, 536, 1000, 1400])}"),
                maybe(r, 0.3, r.choice(["nots", "nosack", "nows"])),
                maybe(r, 0.1, f"mss={r.choice([100, 536, 9000])}"),
                maybe(r, 0.1, f"win={r.choice([0, 100, 5000])}"),
                maybe(r, 0.1, f"flags={r.choice(['SP', 'SEW', 'SU', 'SF', 'SFP'])}"),
                maybe(r, 0.1, "tos=2"),
            )
        )
    acc = 0
    alive: list[int] = []
    for _ in range(r.randint(2, 9)):
        i = r.randint(1, n)
        k = r.random()
        if k < 0.2:
            out.append(f"L0.accept C{acc}")
            alive.append(acc)
            acc += 1
        elif k < 0.4 and alive:
            c = r.choice(alive)
            what = r.choice(
                ["recv", "recv 5", "send 10", "send 3000", "poll", "error", "shutdown SHUT_WR", "shutdown SHUT_RD", "close", "peer", "info"]
            )
            out.append(f"C{c}.{what}")
            if what == "close":
                alive.remove(c)
        elif k < 0.5:
            out.append(
                f"c{i}: syn again {maybe(r, 0.5, 'data=5')} {maybe(r, 0.3, 'fo=' + TFO_COOKIE)} {maybe(r, 0.2, 'seq=5')} {maybe(r, 0.2, 'ts=-1')}"
            )
        elif k < 0.57:
            out.append(f"c{i}: {icmp_words(r)}")
        elif k < 0.8:
            out.append(
                f"c{i}: {r.choice(['ack', 'ack', 'data 10', 'fin', 'rst', 'seg RA', 'ack ack=1', 'ack ack=0', 'data 5 ack=1', 'seg FPA data=4'])}"
            )
        else:
            out.append(f"c{i}: {segment_words(r)}")
        out += wait(r, 0.15)
    out += ["mark x", "ss -tan"]
    if r.random() < 0.2:
        out += ["L0.close", "ss -tan"]
    if r.random() < 0.35:
        out += [f"wait {r.choice(LONG_WAITS)}", "ss -tan"]
    return sysctls(r, 0.3, 1, ("tcp_syncookies", "tcp_timestamps", "tcp_synack_retries", "tcp_abort_on_overflow", "tcp_ecn")) | {
        "tcp_fastopen": str(r.choice([3, 3, 3, 2, 1, 0x203, 0x403, 0x603, 0x402])),
        "tcp_fastopen_key": r.choice([TFO_KEY, TFO_KEY, f"11111111-22222222-33333333-44444444,{TFO_KEY}"]),
    }, out


def established(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Any segments and calls at an accepted connection."""
    out = [
        words("L0 = listen 8000 10", listener_options(r, 0.15)),
        f"c1: open {r.choice(['', '', '', 'nots', 'noopt', 'nosack', 'nows'])}",
        "L0.accept C0",
    ]
    for _ in range(r.randint(2, 8)):
        k = r.random()
        if k < 0.55:
            out.append(f"c1: {segment_words(r, True)}")
        elif k < 0.62:
            out.append(f"c1: {icmp_words(r)}")
        elif k < 0.68:
            out.append(f"c1: syn again seq={r.choice(['0', '+0', '+5', '+100000', '-5'])} {maybe(r, 0.4, 'ts=+1000')}")
        else:
            out.append(f"C0.{r.choice(CALLS)}")
        out += wait(r, 0.5, (0.061, 0.11, 0.3))
    out += ["mark x", "ss -tan", "C0.poll", "C0.error", "C0.recv"]
    return sysctls(
        r,
        0.3,
        2,
        ("tcp_timestamps", "tcp_invalid_ratelimit", "tcp_challenge_ack_limit", "tcp_stdurg", "tcp_dsack", "tcp_sack", "tcp_ecn", "tcp_rfc1337"),
    ), out


def ports(r: Rng) -> tuple[dict[str, str], list[str]]:
    """bind, listen, connect, close and shutdown of several sockets on few ports and addresses."""
    out = ["addr add 192.0.2.3/24 dev tun0"]
    names: list[str] = []
    for n in range(r.randint(2, 5)):
        name = f"{r.choice('LS')}{n}"
        names.append(name)
        out.append(words(f"{name} = socket", maybe(r, 0.5, "SO_REUSEADDR=1"), maybe(r, 0.35, "SO_REUSEPORT=1"), maybe(r, 0.1, "IP_FREEBIND=1")))
    conns: list[str] = []
    for _ in range(r.randint(5, 14)):
        k, s = r.random(), r.choice(names)
        if k < 0.4:
            out.append(f"{s}.bind {r.choice(HOMES)}:{r.choice([8000, 8000, 8000, 8001])}")
        elif k < 0.65:
            out.append(f"{s}.listen {r.choice([0, 1, 5, -1])}")
        elif k < 0.7:
            out.append(f"{s}.shutdown {r.choice(['SHUT_RD', 'SHUT_WR', 'SHUT_RDWR'])}")
        elif k < 0.75:
            out.append(f"{s}.setsockopt {r.choice(['SO_REUSEADDR=0', 'SO_REUSEADDR=1', 'SO_REUSEPORT=1', 'SO_REUSEPORT=0'])}")
        elif k < 0.8 and len(names) > 1:
            names.remove(s)
            out.append(f"{s}.close")
        elif k < 0.9:
            n = len(conns) + 1
            conns.append(f"c{n}")
            out += [
                f"c{n}: from 192.0.2.2:{4000 + n} to {r.choice(['192.0.2.1', '192.0.2.3'])}:{r.choice([8000, 8000, 8001])}",
                f"c{n}: syn",
                f"c{n}: ack",
            ]
        else:
            out.append(f"{s}.{r.choice((*LOOKS, f'accept C{r.randint(0, 99)}'))}")
    out += ["mark x", "ss -tan"]
    return sysctls(r, 0.3, 1, ("tcp_migrate_req", "core.somaxconn", "tcp_syncookies")), out


def group(r: Rng) -> tuple[dict[str, str], list[str]]:
    """A SO_REUSEPORT group whose members go: which member a client gets is random, but with tcp_migrate_req all end at the last one."""
    m = r.randint(2, 3)
    out = [f"L{i} = listen 8000 100 SO_REUSEPORT=1" for i in range(m)]
    n = r.randint(2, 5)
    out += [f"c1..c{n}: {r.choice(['syn', 'open', 'open'])}", "mark in"]
    closed = list(range(m))
    while len(closed) > 1 and r.random() < 0.8:
        i = closed.pop(r.randrange(len(closed)))
        out += [f"L{i}.{r.choice(['close', 'close', 'shutdown SHUT_RD'])}", *wait(r, 0.2)]
    if len(closed) == 1 and r.random() < 0.6:
        out += ["L9 = listen 8000 100 SO_REUSEPORT=1", f"L{closed[0]}.close"]
        closed = [9]
    out += [f"c1..c{n}: ack", *wait(r, 0.5, (0.2, 1.4)), f"c1..c{n}: data 10", f"c1..c{n}: syn again"]
    if len(closed) == 1:
        out += [f"L{closed[0]}.accept C{k}" for k in range(n + 1)]
    return {"tcp_migrate_req": "1"} | sysctls(r, 0.3, 1, ("tcp_abort_on_overflow", "tcp_syncookies")), out


def packets(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Damaged and odd packets below TCP."""
    out = ["L0 = listen 8000 10"]
    for n in range(1, r.randint(3, 8)):
        k = r.random()
        if k < 0.4:
            bad = words(
                maybe(r, 0.3, f"ihl={r.randrange(16)}"),
                maybe(r, 0.3, f"iplen={r.choice([0, 19, 20, 39, 40, 41, 44, 60, 61, 100, 65535])}"),
                maybe(r, 0.2, f"trunc={r.randrange(1, 61)}"),
                maybe(r, 0.2, f"doff={r.randrange(16)}"),
                maybe(r, 0.15, "badip"),
                maybe(r, 0.15, "badsum"),
                maybe(r, 0.2, f"ipfrag={r.choice([0, 0x8000, 0xC000, 0x2000, 0x6000, 0x4001, 1, 0x2001, 0x1FFF])}"),
                maybe(r, 0.2, f"ipopt={r.choice([*IP_OPTIONS, bytes(r.randrange(256) for _ in range(4 * r.randrange(1, 11))).hex()])}"),
                maybe(r, 0.2, f"proto={r.choice([0, 1, 2, 17, 6, 41, 47, 132, 255])}"),
                maybe(
                    r,
                    0.15,
                    f"dst={r.choice(ODD_TO)}",
                ),
                maybe(
                    r,
                    0.15,
                    f"src={r.choice(ODD_FROM)}",
                ),
            )
            out.append(words(f"c{n}:", r.choice(["syn", "syn noopt", "ack", "seg FA data=3"]), bad))
        elif k < 0.6:
            out.append(
                words(f"c{n}: syn", f"frag={r.choice([8, 16, 24, 32])}", maybe(r, 0.3, "rev"), maybe(r, 0.3, "data=100"), maybe(r, 0.3, "tos=3"))
            )
        elif k < 0.8:
            out.append(
                words(
                    f"icmp {r.choice([8, 8, 13, 15, 17, 10, 42, 0, 3, 11, 12, 18, 19, 43, 44, 255, r.randrange(256)])}/{r.choice([0, 0, 1, 3, 77])}",
                    maybe(r, 0.7, f"data={r.choice([0, 1, 8, 12, 56, 1472, 1473, 3000])}"),
                    maybe(r, 0.15, "badsum"),
                    maybe(r, 0.2, f"tos={r.choice([3, 0x48, 255])}"),
                    maybe(r, 0.2, f"dst={r.choice(['192.0.2.255', '224.0.0.1', '255.255.255.255', '127.0.0.1'])}"),
                    maybe(r, 0.2, f"ipopt={r.choice(IP_OPTIONS)}"),
                    maybe(r, 0.2, f"frag={r.choice([8, 600])}"),
                    maybe(r, 0.2, f"src={r.choice(['192.0.2.255', '198.51.100.9', '203.0.113.9', '127.0.0.1'])}"),
                )
            )
        elif k < 0.9:
            out.append(
                words(
                    "udp",
                    f"dport={r.choice([0, 7, 8000])}",
                    maybe(r, 0.5, f"data={r.choice([0, 10, 600, 1400])}"),
                    maybe(r, 0.2, f"dst={r.choice(['192.0.2.255', '224.0.0.1'])}"),
                    maybe(r, 0.3, f"ipopt={r.choice(IP_OPTIONS)}"),
                    maybe(r, 0.2, f"ipfrag={r.choice([0, 0x2000, 1])}"),
                )
            )
        else:
            out.append(
                words(
                    "ip",
                    f"proto={r.choice([0, 1, 2, 4, 6, 17, 41, 47, 50, 89, 132, 255])}",
                    f"data=hex:{bytes(r.randrange(256) for _ in range(r.choice([0, 1, 4, 8, 20, 40]))).hex()}",
                    maybe(r, 0.2, "dst=224.0.0.1"),
                    maybe(r, 0.2, f"src={r.choice(['198.51.100.9', '203.0.113.9'])}"),
                )
            )
    return sysctls(r, 0.2, 1, ("ip_default_ttl", "tcp_reflect_tos", "ip_no_pmtu_disc")), [*out, "mark x", "ss -tan"]


def sockopts(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Options set and read, right and wrong values, on sockets of several states."""
    out = ["L0 = listen 8000 10", "S0 = socket", "c1: open", "L0.accept C0"]
    if r.random() < 0.3:
        out.append(r.choice(["c1: fin", "c1: rst", "C0.shutdown SHUT_WR", "L0.shutdown SHUT_RDWR"]))
    for _ in range(r.randint(5, 14)):
        s = r.choice(["L0", "S0", "C0"])
        name = r.choice(list(VALUES))
        k = r.random()
        if k < 0.6:
            value = r.choice(VALUES[name])
            if r.random() < 0.08:
                value = "hex:" + bytes(r.randrange(256) for _ in range(r.choice([0, 1, 2, 3, 5, 8, 16]))).hex()
            out.append(f"{s}.setsockopt {name}={value}")
        else:
            if name == "TCP_INFO":
                continue
            out.append(f"{s}.getsockopt {name} {r.choice([4, 4, 4, 1, 2, 3, 8, 16])}")
    return sysctls(r, 0.2, 1, ("tcp_rmem", "tcp_fastopen")), out


def write_sysctls(r: Rng) -> tuple[dict[str, str], list[str]]:
    """Values written to sysctls, good and bad."""
    names = [
        *SYSCTLS,
        "tcp_wmem",
        "ip_local_port_range",
        "tcp_keepalive_time",
        "tcp_keepalive_intvl",
        "tcp_keepalive_probes",
        "tcp_retries1",
        "tcp_retries2",
        "tcp_orphan_retries",
        "tcp_reordering",
        "tcp_max_reordering",
        "tcp_limit_output_bytes",
        "tcp_notsent_lowat",
        "tcp_comp_sack_nr",
        "tcp_comp_sack_delay_ns",
        "tcp_frto",
        "tcp_thin_linear_timeouts",
        "tcp_pacing_ss_ratio",
        "tcp_pacing_ca_ratio",
        "tcp_probe_interval",
        "tcp_probe_threshold",
        "tcp_mtu_probe_floor",
        "tcp_syn_retries",
        "tcp_syn_linear_timeouts",
        "tcp_fack",
        "tcp_app_win",
        "tcp_min_tso_segs",
        "tcp_tso_win_divisor",
        "tcp_tso_rtt_log",
        "tcp_retrans_collapse",
        "tcp_ecn_fallback",
        "tcp_fastopen_blackhole_timeout_sec",
        "tcp_tw_reuse_delay",
        "tcp_pingpong_thresh",
        "tcp_min_rtt_wlen",
        "tcp_backlog_ack_defer",
        "tcp_plb_enabled",
        "tcp_early_demux",
        "icmp_ratelimit",
        "icmp_ratemask",
        "icmp_echo_ignore_all",
        "icmp_echo_ignore_broadcasts",
        "icmp_msgs_per_sec",
        "icmp_msgs_burst",
        "ip_nonlocal_bind",
        "ip_local_reserved_ports",
        "ip_unprivileged_port_start",
        "ip_autobind_reuse",
        "ip_dynaddr",
        "ip_early_demux",
        "ipfrag_time",
        "ipfrag_max_dist",
        "ipfrag_high_thresh",
        "ipfrag_low_thresh",
        "tcp_fastopen_key",
        "tcp_child_ehash_entries",
        "tcp_ecn_option",
        "tcp_ecn_option_beacon",
        "tcp_plb_suspend_rto_sec",
        "icmp_errors_use_inbound_ifaddr",
        "core.optmem_max",
        "tcp_available_congestion_control",
        "tcp_no_ssthresh_metrics_save",
        "ip_forward_use_pmtu",
        "tcp_fwmark_accept",
        "tcp_l3mdev_accept",
    ]
    values = [
        "0",
        "1",
        "2",
        "3",
        "-1",
        "10",
        "100",
        "127",
        "128",
        "255",
        "256",
        "1000",
        "65535",
        "65536",
        "2147483647",
        "2147483648",
        "-2147483648",
        "4294967295",
        "4294967296",
        "x",
        "0x10",
        "010",
        " 5 ",
        "5 6",
        "5 6 7",
        "4096 8192 16384",
        "0 0 0",
        "4096,8192",
        "1024 2000",
        "2000 1024",
        "1 65535",
        "cubic",
        "reno",
        "nosuch",
        "1-5,80",
        "00000000-00000000-00000000-00000001",
        "1-2-3-4",
        "1 2 3 4",
        "5x",
        "+5",
        "1e3",
        "100 1000000 2000000",
        "99999999999999999999",
    ]
    out = []
    for _ in range(r.randint(6, 14)):
        n = r.choice(names)
        out += [f"sysctl {n}={r.choice(values)}", f"get net.{n if n.startswith('core.') else 'ipv4.' + n}"]
    return {}, out


FAMILIES: dict[str, Callable[[Rng], tuple[dict[str, str], list[str]]]] = {
    "syn": syn,
    "request": request,
    "queues": queues,
    "cookies": cookies,
    "closing": closing,
    "fastopen": fastopen,
    "established": established,
    "ports": ports,
    "group": group,
    "packets": packets,
    "sockopts": sockopts,
    "sysctls": write_sysctls,
}
SECTION = {
    "syn": "B",
    "request": "E",
    "queues": "D",
    "cookies": "F",
    "closing": "H",
    "fastopen": "I",
    "established": "J",
    "ports": "A",
    "group": "A",
    "packets": "N",
    "sockopts": "A",
    "sysctls": "M",
}
KEYED = {"group": "which member of the group a client gets is a keyed hash"}


def _spaced(lines: list[str]) -> list[str]:
    """A wait behind each FIN: on a connection without data the kernel acknowledges it at its next tick, whenever that is."""
    out = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        out.append(line)
        if _FIN.search(line) and not after.startswith("wait"):
            out.append("wait 0.061")
    return out


def scenario(family: str, seed: int, number: int) -> Scenario:
    """The scenario of this name."""
    r = random.Random(f"{family} {seed} {number}")
    sysctl, lines = FAMILIES[family](r)
    lines = [f"? {line}" if _GUARDED.match(line) else line for line in _spaced(lines)]
    return Scenario(
        f"{family}-{seed}-{number}", SECTION[family], [], f"random: {family}", "\n".join(lines), sysctl, varies=KEYED.get(family), file="random"
    )
