"""Frames on their way out: software segmentation against scapy, payload over the ring's wrap."""

import pytest

from .door import ct

scapy = pytest.importorskip("scapy.all")
IP, TCP = scapy.IP, scapy.TCP
OPTIONS = [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))]


def header(flags, length, ip_id=100, seq=5000, options=OPTIONS):
    """IP and TCP headers as the stack leaves them: total length of the whole, checksum of TCP to come."""
    p = IP(src="192.0.2.1", dst="192.0.2.2", id=ip_id, flags="DF") / TCP(
        sport=80, dport=4000, seq=seq, ack=1, flags=flags, window=64, options=options
    )
    raw = bytes(p)
    p = IP(raw)
    p.len = len(raw) + length
    del p.chksum
    return bytes(p)[: len(raw)]


def data(n):
    return bytes((i * 7 + 3) & 255 for i in range(n))


def valid(packet):
    """The packet with both checksums computed by scapy equals the packet."""
    p = IP(packet)
    del p.chksum
    del p[TCP].chksum
    return bytes(p) == packet


@pytest.mark.parametrize("split", [0, 1, 999, 1000, 1001, 2500])
def test_a_super_segment_becomes_packets(split):
    payload = data(2500)
    packets, whole = ct.tx_cut(header("PAF", 2500), payload, split, 1000)
    parsed = [IP(p) for p in packets]
    assert [len(p[TCP].payload) for p in parsed] == [1000, 1000, 500]
    assert [p.id for p in parsed] == [100, 101, 102]
    assert [p[TCP].seq for p in parsed] == [5000, 6000, 7000]
    assert [str(p[TCP].flags) for p in parsed] == ["A", "A", "FPA"]
    assert all(dict(p[TCP].options)["Timestamp"] == (7, 9) for p in parsed)
    assert b"".join(bytes(p[TCP].payload) for p in parsed) == payload
    assert all(valid(p) for p in packets)
    assert IP(whole).len == len(whole)
    assert valid(whole)


def test_cwr_goes_with_the_first_packet_and_ece_with_all():
    packets, _ = ct.tx_cut(header("ACE", 30), data(30), 30, 10)
    assert [str(IP(p)[TCP].flags) for p in packets] == ["AEC", "AE", "AE"]


def test_numbers_wrap():
    packets, _ = ct.tx_cut(header("A", 30, ip_id=0xFFFF, seq=0xFFFFFFF6), data(30), 3, 10)
    assert [IP(p).id for p in packets] == [0xFFFF, 0, 1]
    assert [IP(p)[TCP].seq for p in packets] == [0xFFFFFFF6, 0, 10]


@pytest.mark.parametrize("n", [0, 1, 10])
def test_one_packet_stays_one(n):
    packets, whole = ct.tx_cut(header("PA", n), data(n), n // 2, 10)
    assert packets == [whole]
    assert valid(whole)


def test_a_frame_of_another_protocol_is_left_alone():
    head = b"\x45" + bytes(27)
    packets, whole = ct.tx_cut(head, b"xyz", 1, 0, partial=False)
    assert packets == [whole] == [head + b"xyz"]
