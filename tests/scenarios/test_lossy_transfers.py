"""Bulk transfers over a wire that loses, repeats and reorders: every byte arrives, whatever recovery is made of.

Seeded: a failing case is the same case again. Built with USTACK_DEBUG=1, marks, counters and links of the send queue are
checked after every ACK (tcp_verify_queue), which makes this the test of the bookkeeping too.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

import ustack

SERVER = "192.0.2.2"


def transfer(
    seed: int, size: int, sysctl: dict[str, Any], out: dict[str, Any], back: dict[str, Any], cc: str = "cubic"
) -> tuple[dict[str, int], float]:
    """The sender's counters and the virtual seconds it took."""
    clock = ustack.VirtualClock()
    left, right = ustack.MemoryLink.pair()
    a = ustack.ImpairedLink(left, seed=seed, direction="out", **out)
    b = ustack.ImpairedLink(right, seed=seed + 1, direction="out", **back)
    with (
        ustack.Stack(a, "192.0.2.1/24", clock=clock, seed=1, sysctl={"net.ipv4.tcp_congestion_control": cc, **sysctl}) as client,
        ustack.Stack(b, f"{SERVER}/24", clock=clock, seed=2, sysctl=sysctl) as server,
    ):
        listener = server.create_server((SERVER, 80))
        conn = client.create_connection((SERVER, 80))
        peer, _ = listener.accept()
        start = clock.now
        data = random.Random(seed).randbytes(size)
        sending = client.submit(conn, "sendall", data)
        got = bytearray()
        while len(got) < size:
            got += peer.recv(1 << 16)
        seconds = (clock.now - start) / 1e9
        assert got == data
        assert sending.done
        counters = client.nstat()
        for sock in (conn, peer, listener):
            sock.close()
    return counters, seconds


@pytest.mark.parametrize("seed", range(60))
def test_every_byte_arrives(seed: int) -> None:
    rng = random.Random(seed)
    delay = rng.choice([0.0, 0.001, 0.02, 0.1])
    out = {
        "delay": delay,
        "jitter": rng.choice([0, 0, 0.001, 0.01, 0.05]),
        "loss": rng.choice([0, 0.01, 0.03, 0.1]),
        "duplicate": rng.choice([0, 0, 0.05]),
    }
    back = {"delay": delay, "loss": rng.choice([0, 0, 0.05, 0.1])}
    sysctl = {
        "net.ipv4.tcp_sack": rng.choice([1, 1, 1, 0]),
        "net.ipv4.tcp_timestamps": rng.choice([1, 1, 0]),
        "net.ipv4.tcp_dsack": rng.choice([1, 1, 0]),
        "net.ipv4.tcp_recovery": rng.choice([1, 1, 3, 5]),
        "net.ipv4.tcp_early_retrans": rng.choice([3, 3, 0]),
    }
    transfer(seed, rng.choice([20_000, 200_000]), sysctl, out, back, rng.choice(["cubic", "reno", "bbr"]))


@pytest.mark.parametrize("cc", ["cubic", "reno", "bbr"])
def test_a_clean_path_is_used_without_retransmission(cc: str) -> None:
    counters, seconds = transfer(3, 1_000_000, {}, {"delay": 0.01}, {"delay": 0.01}, cc)
    assert counters.get("TcpRetransSegs", 0) == 0
    assert seconds < 0.4, "ten round trips of slow start and the receive window's growth"


def test_sack_needs_no_timeout_for_scattered_losses() -> None:
    counters, seconds = transfer(5, 1_000_000, {}, {"delay": 0.02, "loss": 0.01}, {"delay": 0.02})
    assert counters["TcpExtTCPSackRecovery"] > 0
    assert counters.get("TcpExtTCPTimeouts", 0) == 0
    assert seconds < 5


def test_reordering_is_learnt() -> None:
    """Segments up to 10 ms late on a path of 40 ms: RACK's window grows, retransmissions become rare."""
    counters, _ = transfer(8, 1_000_000, {}, {"delay": 0.02, "jitter": 0.01}, {"delay": 0.02})
    assert counters["TcpExtTCPSACKReorder"] > 0
    assert counters.get("TcpExtTCPTimeouts", 0) == 0
    assert counters.get("TcpRetransSegs", 0) < 40
