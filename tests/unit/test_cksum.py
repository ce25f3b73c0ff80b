"""The Internet checksum against scapy and against the definition of RFC 1071."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, in4_pseudoheader
from scapy.utils import checksum as scapy_checksum

from .door import ct

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)


def definition(data):
    words = [int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(data), 2)]
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(max_size=300), st.integers(0, 15))
@example(b"", 0)
@example(b"\xff" * 299, 3)
def test_one_range_at_any_alignment(data, skew):
    assert ct.checksum(data, skew) == definition(data) == scapy_checksum(data)


@pytest.mark.parametrize("n", [*range(70), 1459, 1460, 1480, 65515, 65535])
def test_every_tail_and_the_largest_packets(n):
    data = random.Random(n).randbytes(n)
    assert ct.checksum(data) == definition(data)
    assert ct.checksum(b"\xff" * n) == definition(b"\xff" * n)


@given(st.binary(max_size=200), st.data())
def test_two_ranges_that_meet_anywhere(data, draw):
    split = draw.draw(st.integers(0, len(data)))
    assert ct.checksum(data, split=split) == definition(data)


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=64))
def test_the_start_value_wraps_around_its_64_bits(start, data):
    # Start values are sums in memory order: any 64-bit value is the sum of its own eight bytes.
    assert ct.checksum(data, start=start) == definition(start.to_bytes(8, "little") + data)


@given(u32, u32, st.sampled_from([1, 6, 17]), st.binary(max_size=100))
def test_pseudo_header(src, dst, proto, data):
    ip = IP(src=".".join(map(str, src.to_bytes(4, "big"))), dst=".".join(map(str, dst.to_bytes(4, "big"))))
    header = in4_pseudoheader(proto, ip, len(data))
    assert ct.pseudo_checksum(src, dst, proto, data) == definition(header + data)
    assert ct.pseudo_partial(src, dst, proto, len(data)) == definition(header) ^ 0xFFFF
