"""Random words of scenario lines: options, segments, ICMP errors, socket options, sysctls, routes.

The vocabulary of `hunt`, which makes scenarios of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Rng = random.Random
WAITS = (0.03, 0.11, 0.23, 0.61)
LONG_WAITS = (1.3, 2.6, 4.6)
FLAGS = "FSRPAUEWe"
TFO_KEY = "01020304-05060708-090a0b0c-0d0e0f10"
TFO_COOKIE = "884cc778306eeefe"


def maybe(r: Rng, p: float, text: str) -> str:
    return text if r.random() < p else ""


def words(*parts: str) -> str:
    return " ".join(p for p in parts if p)


# ---- parts of packets


def _option(r: Rng) -> bytes:
    kind = r.choice([0, 1, 1, 2, 2, 3, 3, 4, 4, 8, 8, 5, 6, 19, 28, 29, 30, 34, 34, 253, 254, 254, r.randrange(256)])
    if kind in (0, 1):
        return bytes([kind])
    right = {2: 2, 3: 1, 4: 0, 8: 8, 5: 8, 19: 16, 28: 2, 29: 14, 30: 10, 34: r.choice([0, 4, 8, 16]), 254: r.choice([2, 6, 10])}
    size = right.get(kind, r.randrange(6))
    if r.random() < 0.2:
        size = max(0, size + r.choice([-2, -1, 1, 2, 7]))
    body = bytes(r.randrange(256) for _ in range(size))
    if kind == 2 and size == 2:
        body = r.choice([0, 1, 40, 48, 87, 88, 100, 536, 537, 1299, 1300, 1439, 1440, 1459, 1460, 1461, 8960, 65535]).to_bytes(2, "big")
    elif kind == 3 and size == 1:
        body = bytes([r.choice([0, 1, 2, 7, 8, 13, 14, 15, 255])])
    elif kind == 8 and size == 8:
        body = r.choice([0, 1, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]).to_bytes(4, "big") + r.choice([0, 0, 1, 77]).to_bytes(4, "big")
    elif kind == 254 and size >= 2 and r.random() < 0.8:
        body = b"\xf9\x89" + body[2:]
    length = size + 2
    if r.random() < 0.06:
        length = r.choice([0, 1, length + 1, length + 20, 255])
    return bytes([kind, length]) + body


def options(r: Rng) -> str:
    """Option bytes, good and bad, at most 40."""
    if r.random() < 0.12:
        return bytes(r.randrange(256) for _ in range(4 * r.randrange(1, 11))).hex()
    raw = b"".join(_option(r) for _ in range(r.randrange(1, 7)))
    raw += b"\0" * (-len(raw) % 4) if r.random() < 0.5 else b"\1" * (-len(raw) % 4)
    return raw[:40].hex()


def syn_words(r: Rng) -> str:
    """Words of a SYN."""
    if r.random() < 0.35:
        how = f"opt={options(r)}"
    else:
        how = words(
            maybe(r, 0.15, "noopt"),
            maybe(r, 0.3, "nots"),
            maybe(r, 0.25, "nosack"),
            maybe(r, 0.25, "nows"),
            maybe(r, 0.4, f"mss={r.choice([0, 1, 47, 48, 64, 88, 100, 535, 536, 537, 1000, 1299, 1300, 1440, 1459, 1460, 9000, 65535])}"),
            maybe(r, 0.3, f"ws={r.choice([0, 1, 2, 7, 10, 14, 15, 200])}"),
            maybe(r, 0.15, "nomss"),
            maybe(r, 0.2, f"ts=#{r.choice([0, 1, 5, 4000000000, 4294967295])}"),
            maybe(r, 0.1, f"ecr=#{r.choice([1, 99999])}"),
        )
    flags = "S"
    if r.random() < 0.3:
        flags += "".join(f for f in "PUEWe" if r.random() < 0.5)
    return words(
        how,
        maybe(r, flags != "S", f"flags={flags}"),
        maybe(r, 0.2, f"data={r.choice([1, 4, 100, 1400])}"),
        maybe(r, 0.25, f"tos={r.choice([1, 2, 3, 0x10, 0x48, 0xB8, 0xFF])}"),
        maybe(r, 0.1, f"ttl={r.choice([0, 1, 255])}"),
        maybe(r, 0.15, f"win={r.choice([0, 1, 100, 1460, 65535])}"),
        maybe(r, 0.1, f"urg={r.choice([1, 9])}"),
        maybe(r, 0.06, f"ipopt={r.choice(IP_OPTIONS)}"),
        maybe(r, 0.08, f"ack={r.choice(['#1', '#4000000000'])}"),
    )


IP_OPTIONS = (
    "01010101",
    "94040000",
    "07070400000000000000"[:16] + "0000",
    "0707040000000001",
    "44080500" + "00000000",
    "440c0501" + "0" * 16,
    "830704c000020100",
    "01000000",
    "88040001",
    "0704040100000000",
    "8603000001010101"[:16],
    "070b0400000000000000000001"[:24],
)


def segment_words(r: Rng, established: bool = False) -> str:
    """Words of any segment on a known 4-tuple."""
    kind = r.random()
    if kind < 0.35:
        verb = "seg A"
    elif kind < 0.6:
        verb = f"seg {r.choice(['PA', 'A'])} data={r.choice([1, 5, 100, 1000, 1448])}"
    elif kind < 0.7:
        verb = words("seg FA", maybe(r, 0.3, "data=10"))
    elif kind < 0.8:
        verb = f"seg {r.choice(['R', 'RA'])}"
    else:
        verb = words("seg", "".join(f for f in FLAGS if r.random() < 0.3) or "0", maybe(r, 0.3, f"data={r.choice([1, 20])}"))
    seq = ""
    if r.random() < 0.4:
        seq = "seq=" + r.choice(
            [
                "0",
                "1",
                "2",
                "-1",
                "+1",
                "-2",
                "+5",
                "-100",
                "+100",
                "+1448",
                "+1460",
                "+20000",
                "+64088",
                "+64239",
                "+64240",
                "+64241",
                "+65159",
                "+65160",
                "+65161",
                "+65535",
                "+65536",
                "+1000000",
                "#0",
                "#4294967295",
            ]
        )
        if seq[4] in "-0123456789" and not established:
            seq = seq.replace("seq=-", "seq=-")
    ack = ""
    if r.random() < 0.3:
        ack = "ack=" + r.choice(["0", "1", "2", "3", "-1", "+1", "+2", "+100", "-3", "#0", "#12345", "+1000000", "-70000", "-1000"])
    ts = ""
    if r.random() < 0.35:
        ts = r.choice(
            [
                "nots",
                "ts=+0",
                "ts=-1",
                "ts=-1000",
                "ts=+1",
                "ts=+100000",
                "ts=#0",
                "ts=+2147483647",
                "ts=-2147483648",
                "ecr=#0",
                "ecr=+1",
                "ecr=-1",
                "ecr=first",
                "ecr=first-1",
                "ecr=+100000",
                "ts=-1 ecr=#0",
            ]
        )
    return words(
        verb,
        seq,
        ack,
        ts,
        maybe(r, 0.1, f"win={r.choice([0, 1, 500, 65535])}"),
        maybe(r, 0.08, f"urg={r.choice([0, 1, 2, 5, 3000])}"),
        maybe(r, 0.08, f"tos={r.choice([1, 2, 3, 0x48, 0xFF])}"),
        maybe(r, 0.04, "badsum"),
        maybe(r, 0.04, f"opt={options(r)}"),
        maybe(r, 0.04, "hold"),
    )


def icmp_words(r: Rng) -> str:
    kind = r.choice(
        [
            "3/0",
            "3/1",
            "3/2",
            "3/3",
            "3/4",
            "3/5",
            "3/6",
            "3/7",
            "3/8",
            "3/9",
            "3/10",
            "3/13",
            "3/15",
            "11/0",
            "11/1",
            "12/0",
            "12/1",
            "4/0",
            "5/0",
            "5/1",
        ]
    )
    return words(
        f"icmp {kind}",
        maybe(r, 0.4, f"seq={r.choice(['0', '1', '2', '-1', '+1', '+0', '101', '#5'])}"),
        maybe(r, 0.4 if kind == "3/4" else 0.05, f"mtu={r.choice([0, 1, 68, 296, 551, 552, 576, 1000, 1280, 1400, 1499, 1500, 65535])}"),
        maybe(r, 0.1, f"len={r.choice([4, 7, 8, 12, 20])}"),
        maybe(r, 0.1, "from=192.0.2.99"),
        maybe(r, 0.05, "badsum"),
    )


LISTENER_OPTIONS = (
    "TCP_MAXSEG",
    "TCP_WINDOW_CLAMP",
    "SO_RCVBUF",
    "SO_SNDBUF",
    "IP_TTL",
    "IP_TOS",
    "TCP_NODELAY",
    "TCP_SYNCNT",
    "TCP_DEFER_ACCEPT",
    "TCP_USER_TIMEOUT",
    "IP_MINTTL",
    "TCP_LINGER2",
    "SO_LINGER",
    "SO_KEEPALIVE",
    "TCP_FASTOPEN",
    "TCP_SAVE_SYN",
    "TCP_QUICKACK",
    "SO_PRIORITY",
    "IP_MTU_DISCOVER",
    "TCP_RTO_MAX_MS",
    "TCP_NOTSENT_LOWAT",
    "SO_RCVLOWAT",
    "IP_RECVERR",
    "SO_OOBINLINE",
    "TCP_CORK",
)
VALUES: dict[str, Sequence[Any]] = {
    "TCP_MAXSEG": (0, 1, 87, 88, 89, 100, 536, 1000, 1459, 1460, 1461, 9000, 32767, 32768, -1),
    "TCP_WINDOW_CLAMP": (0, 1, 1151, 1152, 5000, 10000, 65535, 65536, 100000, 1000000, -1),
    "SO_RCVBUF": (0, 1, 1151, 1152, 2304, 4096, 8192, 20000, 65535, 65536, 131072, 262144, 1048576, 4194304, 5000000),
    "SO_SNDBUF": (0, 1, 2304, 4608, 10000, 100000, 5000000),
    "IP_TTL": (-1, 0, 1, 63, 255, 256),
    "IP_TOS": (0, 1, 2, 3, 4, 0x10, 0x48, 0xB8, 0xFF, 256),
    "TCP_SYNCNT": (0, 1, 2, 3, 5, 127, 128, 255, -1),
    "TCP_DEFER_ACCEPT": (0, 1, 2, 3, 4, 5, 7, 8, 30, 200, 100000, -1),
    "TCP_USER_TIMEOUT": (0, 1, 500, 3000, -1),
    "IP_MINTTL": (0, 1, 63, 64, 65, 255, 256, -1),
    "TCP_LINGER2": (-2, -1, 0, 1, 2, 60, 61, 120, 121),
    "SO_LINGER": ("0/0", "1/0", "1/1", "0/5"),
    "SO_KEEPALIVE": (0, 1, 2),
    "TCP_FASTOPEN": (-1, 0, 1, 2, 5, 1000000),
    "TCP_SAVE_SYN": (-1, 0, 1, 2, 3),
    "TCP_QUICKACK": (0, 1, 2),
    "SO_PRIORITY": (-1, 0, 1, 6, 7),
    "IP_MTU_DISCOVER": (-1, 0, 1, 2, 3, 4, 5, 6),
    "TCP_RTO_MAX_MS": (0, 999, 1000, 2000, 120000, 120001),
    "TCP_NOTSENT_LOWAT": (0, 1, 5000, -1),
    "SO_RCVLOWAT": (-1, 0, 1, 100, 100000, 100000000),
    "IP_RECVERR": (0, 1, 2),
    "SO_OOBINLINE": (0, 1),
    "TCP_CORK": (0, 1),
    "TCP_NODELAY": (0, 1, 2, -1),
    "TCP_KEEPIDLE": (-1, 0, 1, 2, 32767, 32768),
    "TCP_KEEPINTVL": (-1, 0, 1, 32767, 32768),
    "TCP_KEEPCNT": (-1, 0, 1, 127, 128),
    "TCP_INQ": (0, 1, 2),
    "SO_REUSEADDR": (0, 1, 5),
    "SO_REUSEPORT": (0, 1, 5),
    "SO_INCOMING_CPU": (0, 1, -1),
    "SO_MAX_PACING_RATE": (1000000, -1),
    "IP_FREEBIND": (0, 1),
    "TCP_FASTOPEN_NO_COOKIE": (0, 1, 2),
    "TCP_RTO_MIN_US": (0, 1, 4000, 300000, 1000000, 1000001),
    "TCP_DELACK_MAX_US": (0, 1, 4000, 200000, 200001, 1000000),
    "SO_DONTROUTE": (0, 1),
    "SO_BROADCAST": (0, 1),
    "SO_RCVTIMEO": ("0s", "0.2s"),
    "SO_SNDTIMEO": ("0s", "1.5s"),
    "SO_ACCEPTCONN": (0,),
    "SO_ERROR": (0,),
    "SO_TYPE": (0,),
    "SO_PROTOCOL": (0,),
    "SO_DOMAIN": (0,),
    "TCP_CONGESTION": ("cubic", "reno", "nosuch"),
    "IP_RECVTTL": (0, 1),
    "IP_RECVTOS": (0, 1),
    "IP_PKTINFO": (0, 1),
    "TCP_INFO": (0,),
    "SO_TIMESTAMP": (0, 1),
    "SO_RCVBUFFORCE": (5000, 100000),
    "SO_SNDBUFFORCE": (5000, 100000),
    "SO_ZEROCOPY": (0, 1),
}


def listener_options(r: Rng, p: float = 0.35, most: int = 2) -> str:
    if r.random() > p:
        return ""
    names = r.sample(LISTENER_OPTIONS, r.randint(1, most))
    return words(*(f"{n}={r.choice(VALUES[n])}" for n in names))


SYSCTLS: dict[str, Sequence[Any]] = {
    "tcp_syncookies": (0, 1, 2),
    "tcp_timestamps": (0, 1, 2),
    "tcp_sack": (0, 1),
    "tcp_window_scaling": (0, 1),
    "tcp_ecn": (0, 1, 2),
    "tcp_reflect_tos": (0, 1),
    "tcp_abort_on_overflow": (0, 1),
    "tcp_synack_retries": (0, 1, 2, 5),
    "tcp_max_syn_backlog": (1, 2, 4, 8, 128),
    "core.somaxconn": (0, 1, 2, 4096),
    "tcp_rmem": ("4096 4096 6291456", "4096 16384 65536", "4096 65536 1048576", "4096 1048576 33554432"),
    "tcp_invalid_ratelimit": (0, 100, 500, 10000),
    "tcp_workaround_signed_windows": (0, 1),
    "tcp_migrate_req": (0, 1),
    "tcp_min_snd_mss": (48, 500, 1000),
    "tcp_fastopen": (0, 1, 2, 3, 0x203, 0x403, 0x603, 0x400),
    "tcp_rfc1337": (0, 1),
    "tcp_fin_timeout": (1, 30, 60),
    "tcp_max_tw_buckets": (0, 1, 2, 1000),
    "ip_default_ttl": (1, 33, 255),
    "tcp_mtu_probing": (0, 1, 2),
    "tcp_base_mss": (600, 1024),
    "ip_no_pmtu_disc": (0, 1, 2, 3),
    "tcp_challenge_ack_limit": (0, 1, 1000),
    "tcp_adv_win_scale": (1, -2),
    "tcp_shrink_window": (0, 1),
    "tcp_stdurg": (0, 1),
    "tcp_tw_reuse": (0, 1, 2),
    "tcp_rto_min_us": (50000, 200000),
    "tcp_rto_max_ms": (1000, 120000),
    "tcp_moderate_rcvbuf": (0, 1),
    "tcp_dsack": (0, 1),
    "tcp_autocorking": (0, 1),
    "tcp_slow_start_after_idle": (0, 1),
    "tcp_early_retrans": (0, 3),
    "tcp_recovery": (0, 1),
    "tcp_no_metrics_save": (0, 1),
}


def sysctls(r: Rng, p: float = 0.6, most: int = 3, names: Sequence[str] = ()) -> dict[str, str]:
    if r.random() > p:
        return {}
    pool = list(names or SYSCTLS)
    return {n: str(r.choice(SYSCTLS[n])) for n in r.sample(pool, min(len(pool), r.randint(1, most)))}


ROUTES = (
    "mtu 1300",
    "mtu lock 1300",
    "advmss 700",
    "window 10000",
    "initrwnd 10",
    "features ecn",
    "quickack 1",
    "initcwnd 3",
    "mtu 400",
    "rto_min 400ms",
    "advmss 100",
    "initrwnd 2",
    "fastopen_no_cookie 1",
    "mtu 9000",
    "window 100",
    "hoplimit 7",
)


def wait(r: Rng, p: float = 0.4, choices: Sequence[float] = WAITS) -> list[str]:
    return [f"wait {r.choice(choices)}"] if r.random() < p else []


def setting(r: Rng, names: Sequence[str] = ()) -> str:
    name = r.choice(list(names or SYSCTLS))
    return f"sysctl {name}={r.choice(SYSCTLS[name])}"
