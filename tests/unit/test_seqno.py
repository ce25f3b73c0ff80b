"""Sequence-number arithmetic against plain definitions on the circle of 2^32."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .door import ct

M = 1 << 32
u32 = st.integers(0, M - 1)
near = st.integers(1, (1 << 31) - 1)


@given(u32, near)
def test_a_number_is_before_the_ones_less_than_half_a_circle_ahead(a, d):
    b = (a + d) % M
    assert ct.before(a, b) and ct.after(b, a)
    assert not ct.before(b, a) and not ct.after(a, b)


@given(u32)
def test_equal_and_opposite(a):
    opposite = (a + (1 << 31)) % M
    assert not ct.before(a, a) and not ct.after(a, a)
    assert ct.before(a, opposite) and ct.before(opposite, a)


@given(u32, u32, u32)
def test_between_counts_from_lo(s, lo, hi):
    assert ct.between(s, lo, hi) == ((s - lo) % M <= (hi - lo) % M)


def test_between_includes_both_ends_and_crosses_the_wrap():
    assert ct.between(0xFFFFFFF0, 0xFFFFFFF0, 0x10)
    assert ct.between(0x10, 0xFFFFFFF0, 0x10)
    assert not ct.between(0x11, 0xFFFFFFF0, 0x10)
    assert not ct.between(0xFFFFFFEF, 0xFFFFFFF0, 0x10)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1))
def test_min_and_max_of_each_width(a, b):
    def signed(x, bits):
        x %= 1 << bits
        return x - (1 << bits) if x >> (bits - 1) else x

    want = {
        "u32": (a % M, b % M),
        "i32": (signed(a, 32), signed(b, 32)),
        "i64": (a, b),
    }
    assert ct.minmax_all(a, b) == {k: (min(v), max(v)) for k, v in want.items()}


@given(u32)
def test_ilog2(x):
    assert ct.ilog2_u32(x) == max(x, 1).bit_length() - 1


@given(st.integers(0, 1 << 31), st.integers(1, 1 << 30))
def test_rounding(x, m):
    assert ct.rounddown_u32(x, m) == x // m * m


@pytest.mark.parametrize(("x", "m", "down"), [(65536, 1460, 64240), (0, 7, 0), (9, 3, 9)])
def test_rounding_examples(x, m, down):
    assert ct.rounddown_u32(x, m) == down
