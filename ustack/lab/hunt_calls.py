"""Random scenarios of what a program does: ports and addresses, SO_REUSEPORT groups, socket options, sysctls. Families of `hunt`."""

from __future__ import annotations

from .hunt_words import (
    SYSCTLS,
    VALUES,
    Rng,
    maybe,
    sysctls,
    wait,
    words,
)

HOMES = ("0.0.0.0", "0.0.0.0", "192.0.2.1", "192.0.2.3", "127.0.0.1", "192.0.2.255", "203.0.113.5", "224.0.0.1")
LOOKS = ("name", "peer", "poll", "error", "recv", "send 5", "getsockopt SO_ACCEPTCONN", "info")

MORE_SYSCTLS = """
tcp_wmem ip_local_port_range tcp_keepalive_time tcp_keepalive_intvl tcp_keepalive_probes tcp_retries1 tcp_retries2 tcp_orphan_retries
tcp_reordering tcp_max_reordering tcp_limit_output_bytes tcp_notsent_lowat tcp_comp_sack_nr tcp_comp_sack_delay_ns tcp_frto
tcp_thin_linear_timeouts tcp_pacing_ss_ratio tcp_pacing_ca_ratio tcp_probe_interval tcp_probe_threshold tcp_mtu_probe_floor
tcp_syn_retries tcp_syn_linear_timeouts tcp_fack tcp_app_win tcp_min_tso_segs tcp_tso_win_divisor tcp_tso_rtt_log tcp_retrans_collapse
tcp_ecn_fallback tcp_fastopen_blackhole_timeout_sec tcp_tw_reuse_delay tcp_pingpong_thresh tcp_min_rtt_wlen tcp_backlog_ack_defer
tcp_plb_enabled tcp_early_demux icmp_ratelimit icmp_ratemask icmp_echo_ignore_all icmp_echo_ignore_broadcasts icmp_msgs_per_sec
icmp_msgs_burst ip_nonlocal_bind ip_local_reserved_ports ip_unprivileged_port_start ip_autobind_reuse ip_dynaddr ip_early_demux
ipfrag_time ipfrag_max_dist ipfrag_high_thresh ipfrag_low_thresh tcp_fastopen_key tcp_child_ehash_entries tcp_ecn_option
tcp_ecn_option_beacon tcp_plb_suspend_rto_sec icmp_errors_use_inbound_ifaddr core.optmem_max tcp_available_congestion_control
tcp_no_ssthresh_metrics_save ip_forward_use_pmtu tcp_fwmark_accept tcp_l3mdev_accept
""".split()  # noqa: SIM905 - a list of words
SYSCTL_VALUES = (
    "0", "1", "2", "3", "-1", "10", "100", "127", "128", "255", "256", "1000", "65535", "65536", "2147483647", "2147483648", "-2147483648",
    "4294967295", "4294967296", "x", "0x10", "010", " 5 ", "5 6", "5 6 7", "4096 8192 16384", "0 0 0", "4096,8192", "1024 2000",
    "2000 1024", "1 65535", "cubic", "reno", "nosuch", "1-5,80", "00000000-00000000-00000000-00000001", "1-2-3-4", "1 2 3 4", "5x", "+5",
    "1e3", "100 1000000 2000000", "99999999999999999999",
)


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
    names = [*SYSCTLS, *MORE_SYSCTLS]
    out = []
    for _ in range(r.randint(6, 14)):
        n = r.choice(names)
        out += [f"sysctl {n}={r.choice(SYSCTL_VALUES)}", f"get net.{n if n.startswith('core.') else 'ipv4.' + n}"]
    return {}, out
