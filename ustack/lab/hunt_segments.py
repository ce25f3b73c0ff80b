"""Random scenarios of what comes in beside that: any segment at a connection, at one that closes, damaged packets. Families of `hunt`."""

from __future__ import annotations

from .hunt_words import (
    IP_OPTIONS,
    Rng,
    icmp_words,
    listener_options,
    maybe,
    segment_words,
    sysctls,
    wait,
    words,
)

CALLS = ("recv", "recv 3", "recv 5 MSG_PEEK", "recv 1 MSG_OOB", "send 1", "send 100", "poll", "error", "shutdown SHUT_WR", "shutdown SHUT_RD", "peer")
ODD_TO = ("192.0.2.255", "255.255.255.255", "224.0.0.1", "0.0.0.0", "127.0.0.1", "192.0.2.9", "203.0.113.1", "240.0.0.1")
ODD_FROM = ("192.0.2.255", "0.0.0.0", "127.0.0.1", "224.0.0.5", "240.1.1.1", "255.255.255.255", "192.0.2.1", "203.0.113.4")


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
