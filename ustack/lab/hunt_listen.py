"""Random scenarios of the listen path: SYNs, half-open requests, queues, cookies, Fast Open. Families of `hunt`."""

from __future__ import annotations

from .hunt_words import (
    LONG_WAITS,
    ROUTES,
    TFO_COOKIE,
    TFO_KEY,
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

THIRDS = ("ack", "ack", "data 10", "fin", "ack nots", "seg PAUEW data=3 urg=2", "seg SA", "seg RA", "seg FA data=4")
TWISTS = ("ecr=+1", "ecr=-1", "ecr=+64", "ecr=#0", "ts=#1", "seq=2", "seq=0", "seq=4", "seq=-3", "seq=5", "ack=2", "ack=5", "ack=0", "win=0", "tos=3")


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
