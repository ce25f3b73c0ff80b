"""Links in virtual time: a cable between two stacks, impairments with exact times, capture files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ustack import ImpairedLink, MemoryLink, PcapLink, Stack, VirtualClock
from ustack._fastpath import Impairment
from ustack.links.base import Link
from ustack.links.pcap import read_packets

A, B = "192.0.2.1", "192.0.2.2"
MS = 1_000_000


def two(clock: VirtualClock, wrap: Callable[[Link], Link] = lambda link: link) -> tuple[Stack, Stack]:
    left, right = MemoryLink.pair()
    return Stack(wrap(left), f"{A}/24", clock=clock, name="a"), Stack(right, f"{B}/24", clock=clock, name="b")


def transfer(a: Stack, b: Stack, blob: bytes) -> int:
    """blob from a to b over a new connection; the virtual time it took."""
    clock = a.clock
    assert clock is not None
    start = clock.now
    server = a.create_server((A, 80))
    accepted = a.submit(server, "accept")
    client = b.create_connection((A, 80))
    while not accepted.done:
        assert clock.step()
    conn = accepted.get()[0]
    sent = a.submit(conn, "sendall", blob)
    got = bytearray()
    while len(got) < len(blob):
        got += client.recv(1 << 20)
    assert got == blob
    assert sent.done
    took = clock.now - start
    for sock in (conn, client, server):
        sock.close()
    return took


# ---- the cable --------------------------------------------------------------------------------------------------------------------
def test_two_stacks_on_a_cable() -> None:
    clock = VirtualClock()
    a, b = two(clock)
    assert transfer(a, b, bytes(range(256)) * 2000) < 300 * MS, "no delay on the cable, at most a delayed acknowledgement"
    assert a.nstat().get("TcpRetransSegs", 0) == 0
    assert a.nstat()["TcpPassiveOpens"] == b.nstat()["TcpActiveOpens"] == 1


def test_two_stacks_need_one_clock() -> None:
    left, right = MemoryLink.pair()
    Stack(left, f"{A}/24", clock=VirtualClock())
    with pytest.raises(ValueError, match="one VirtualClock"):
        Stack(right, f"{B}/24", clock=VirtualClock())


def test_an_end_takes_one_stack() -> None:
    clock = VirtualClock()
    left, _ = MemoryLink.pair()
    Stack(left, f"{A}/24", clock=clock)
    with pytest.raises(ValueError, match="already has a stack"):
        Stack(left, f"{B}/24", clock=clock)


def test_the_mtu_of_the_link_is_the_stack_s() -> None:
    clock = VirtualClock()
    left, right = MemoryLink.pair(mtu=600)
    a, b = Stack(left, f"{A}/24", clock=clock), Stack(right, f"{B}/24", clock=clock)
    server = a.create_server((A, 80))
    client = b.create_connection((A, 80))
    conn, _ = server.accept()
    assert conn.getsockopt(6, 2) == client.getsockopt(6, 2) == 600 - 40 - 12


def test_what_is_closed_carries_nothing() -> None:
    clock = VirtualClock()
    a, b = two(clock)
    a.stop()
    client = b.socket()
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.connect((A, 80))
    assert clock.now == 500 * MS


# ---- impairments ------------------------------------------------------------------------------------------------------------------
def through(n: int = 1000, size: int = 100, gap: int = 0, **kwargs: float) -> tuple[list[tuple[int, int]], Impairment]:
    """n numbered packets, one every gap ns: [(time out, number), ...]."""
    imp = Impairment(**kwargs)  # type: ignore[arg-type]
    for i in range(n):
        imp.push(True, struct.pack("!I", i).ljust(size, b"\0"), i * gap)
    out = []
    while (at := imp.next(True)) is not None:
        popped = imp.pop(True, at)
        assert popped is not None
        out.append((at, struct.unpack("!I", popped[0][:4])[0]))
    return out, imp


def test_a_perfect_line_changes_nothing() -> None:
    out, imp = through(500, gap=3)
    assert out == [(3 * i, i) for i in range(500)]
    assert imp.counters()["out"] == {"packets": 500, "lost": 0, "duplicated": 0, "corrupted": 0, "reordered": 0, "overflow": 0}
    assert imp.counters()["in"]["packets"] == 0


def test_a_delay_is_exact() -> None:
    out, _ = through(100, gap=MS, delay=7 * MS)
    assert out == [(i * MS + 7 * MS, i) for i in range(100)]


def test_the_rate_is_that_of_a_line() -> None:
    """1,000 bytes a packet at 1 MB/s: one a millisecond, whatever the burst."""
    out, _ = through(50, size=1000, rate=1e6)
    assert out == [((i + 1) * MS, i) for i in range(50)]
    out, _ = through(50, size=1000, gap=2 * MS, rate=1e6)
    assert out == [(2 * i * MS + MS, i) for i in range(50)], "an idle line does not save up"


def test_jitter_spreads_and_reorders() -> None:
    out, _ = through(2000, gap=MS, delay=10 * MS, jitter=3 * MS)
    delays = [at - n * MS for at, n in out]
    assert min(delays) >= 7 * MS
    assert max(delays) <= 13 * MS
    assert max(delays) - min(delays) > 5 * MS
    assert [n for _, n in out] != sorted(n for _, n in out)
    assert [at for at, _ in out] == sorted(at for at, _ in out)


@pytest.mark.parametrize("what, counter", [("loss", "lost"), ("duplicate", "duplicated"), ("reorder", "reordered"), ("corrupt", "corrupted")])
def test_shares_are_as_asked(what: str, counter: str) -> None:
    n = 20000
    _, imp = through(n, limit=100000, **{what: 0.1})
    assert 0.09 * n < imp.counters()["out"][counter] < 0.11 * n
    assert sum(imp.counters()["out"].values()) == n + imp.counters()["out"][counter]


@pytest.mark.parametrize("what", ["loss", "duplicate", "reorder", "corrupt"])
def test_all_or_nothing(what: str) -> None:
    out, imp = through(100, **{what: 1})
    expected = {"loss": 0, "duplicate": 200, "reorder": 100, "corrupt": 100}[what]
    assert len(out) == expected
    out, imp = through(100, **{what: 0})
    assert [n for _, n in out] == list(range(100))
    assert sum(imp.counters()["out"].values()) == 100


def test_a_reordered_packet_overtakes_or_is_overtaken() -> None:
    out, _ = through(200, gap=MS, delay=10 * MS, reorder=0.1, seed=4)
    fast = [n for at, n in out if at == n * MS]
    slow = [n for at, n in out if at == n * MS + 10 * MS]
    assert len(fast) + len(slow) == 200
    assert len(fast) > 5
    out, _ = through(200, gap=100_000, reorder=0.1, seed=4)
    held = [n for at, n in out if at == n * 100_000 + MS]
    assert len(held) > 5, "without a delay it is held back for 1 ms"


def test_corruption_flips_one_bit() -> None:
    imp = Impairment(corrupt=1, seed=9)
    for i in range(100):
        packet = bytes(60)
        imp.push(False, packet, i)
        popped = imp.pop(False, i)
        assert popped is not None
        assert sum(bin(byte).count("1") for byte in popped[0]) == 1


def test_the_limit_drops_the_tail() -> None:
    out, imp = through(150, delay=MS, limit=100)
    assert [n for _, n in out] == list(range(100))
    assert imp.counters()["out"]["overflow"] == 50


def test_equal_seeds_equal_fates() -> None:
    kwargs = {"loss": 0.1, "duplicate": 0.1, "reorder": 0.1, "corrupt": 0.1, "delay": MS, "jitter": MS // 2}
    assert through(500, seed=1, **kwargs)[0] == through(500, seed=1, **kwargs)[0]
    assert through(500, seed=1, **kwargs)[0] != through(500, seed=2, **kwargs)[0]


def test_one_direction_only() -> None:
    imp = Impairment(loss=1, direction="in")
    imp.push(False, b"x" * 20, 0)
    imp.push(True, b"y" * 20, 0)
    assert imp.pop(False, 0) is None
    assert imp.pop(True, 0) == (b"y" * 20, 0, 0)


@pytest.mark.parametrize("kwargs", [{"loss": 1.5}, {"duplicate": -0.1}, {"delay": -1}, {"limit": 0}, {"direction": "up"}, {"rate": -1}])
def test_nonsense_is_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Impairment(**kwargs)  # type: ignore[arg-type]


def test_a_connection_over_a_long_line_takes_its_round_trips() -> None:
    clock = VirtualClock()
    a, b = two(clock, lambda link: ImpairedLink(link, delay=0.05))
    # SYN there, SYN-ACK back, ACK there, data back.
    assert transfer(a, b, b"x" * 1000) == 200 * MS


@pytest.mark.parametrize("seed", range(8))
def test_every_byte_through_a_bad_line(seed: int) -> None:
    clock = VirtualClock()
    bad = lambda link: ImpairedLink(  # noqa: E731
        ImpairedLink(link, loss=0.03, delay=0.01, jitter=0.002, corrupt=0.01, seed=seed), duplicate=0.03, reorder=0.05, rate=50e6, seed=seed + 99)
    a, b = two(clock, bad)
    blob = bytes((i * 7 + i // 251) & 255 for i in range(300_000))
    transfer(a, b, blob)
    for stack in (a, b):
        assert stack.pools()["send_records"] == stack.pools()["receive_records"] == 0 or clock.next_timeout() is not None
    clock.advance(clock.now + 300_000 * MS)
    for stack in (a, b):
        assert {k: v for k, v in stack.pools().items() if v} == {}, "everything is given back"


def test_a_run_repeats_to_the_nanosecond() -> None:
    def run() -> tuple[int, dict[str, int]]:
        clock = VirtualClock()
        a, b = two(clock, lambda link: ImpairedLink(link, loss=0.05, delay=0.01, jitter=0.005, duplicate=0.05, seed=3))
        return transfer(a, b, b"y" * 200_000), a.nstat()

    assert run() == run()


# ---- capture files ----------------------------------------------------------------------------------------------------------------
def syn(n: int, src: str = "198.51.100.7", dst: str = A) -> bytes:
    """A SYN, made by a stack."""
    clock = VirtualClock()
    stack = Stack(None, f"{src}/24", clock=clock, seed=n)
    sock = stack.socket()
    sock.setblocking(False)
    sock.bind((src, 10000 + n))
    with pytest.raises(BlockingIOError):
        sock.connect((dst, 80))
    return stack.take()[0][1]


def pcap(path: Path, packets: list[tuple[int, bytes]], order: str = "<", nano: bool = False, ether: bool = False) -> Path:
    head = struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1 if ether else 101)
    scale = 1 if nano else 1000
    body = b""
    for at, packet in packets:
        frame = (b"\0" * 12 + b"\x08\0" + packet) if ether else packet
        body += struct.pack(order + "IIII", at // 10**9, at % 10**9 // scale, len(frame), len(frame)) + frame
    path.write_bytes(head + body)
    return path


def pcapng(path: Path, packets: list[tuple[int, bytes]]) -> Path:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    out = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += block(1, struct.pack("<HHI", 101, 0, 0) + struct.pack("<HHB3x", 9, 1, 9) + struct.pack("<HH", 0, 0))
    out += block(4, b"\0\0\0\0")
    for at, packet in packets:
        out += block(6, struct.pack("<IIIII", 0, at >> 32, at & 0xFFFFFFFF, len(packet), len(packet)) + packet)
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("kind", ["us", "ns", "big", "ether", "ng"])
def test_every_kind_of_file_is_read(tmp_path: Path, kind: str) -> None:
    packets = [(1_700_000_000 * 10**9 + i * 5 * MS, syn(i)) for i in range(5)]
    path = tmp_path / "file"
    match kind:
        case "ng":
            pcapng(path, packets)
        case "big":
            pcap(path, packets, order=">")
        case _:
            pcap(path, packets, nano=kind == "ns", ether=kind == "ether")
    with path.open("rb") as file:
        assert list(read_packets(file)) == packets


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello, world")
    link = PcapLink(tmp_path / "x")
    with pytest.raises(ValueError, match="not a pcap"):
        Stack(link, f"{A}/24", clock=VirtualClock())


def test_a_capture_is_played_at_its_times_and_the_answers_recorded(tmp_path: Path) -> None:
    packets = [(10**18 + i * 5 * MS, syn(i)) for i in range(4)]
    packets.insert(2, (10**18 + 7 * MS, syn(9, src=A, dst="198.51.100.7")))       # the other direction: not ours to take
    clock = VirtualClock(wall=10**15)
    link = PcapLink(pcap(tmp_path / "in", packets, nano=True), tmp_path / "out", write_in=True)
    stack = Stack(link, f"{A}/24", clock=clock)
    server = stack.create_server((A, 80))  # noqa: F841  (an unreferenced socket closes)
    clock.advance(100 * MS)
    assert link.done.is_set()
    assert stack.nstat()["TcpInSegs"] == 4
    assert len(stack.requests()) == 4
    stack.stop()
    with (tmp_path / "out").open("rb") as file:
        written = list(read_packets(file))
    assert [at - 10**15 for at, _ in written] == [i * 5 * MS for i in range(4) for _ in range(2)]
    assert [packet for _, packet in written[::2]] == [packets[i][1] for i in (0, 1, 3, 4)]
    assert all(packet[33] == 0x12 for _, packet in written[1::2]), "SYN-ACK"


def test_at_once_and_faster(tmp_path: Path) -> None:
    packets = [(i * 5 * MS, syn(i)) for i in range(4)]
    for speed, end in ((0, 0), (5, 3 * MS)):
        clock = VirtualClock()
        stack = Stack(PcapLink(pcap(tmp_path / "in", packets, nano=True), speed=speed), f"{A}/24", clock=clock)
        server = stack.create_server((A, 80))  # noqa: F841  (an unreferenced socket closes)
        clock.advance(end)
        assert len(stack.requests()) == 4
