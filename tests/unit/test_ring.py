"""The byte ring against a dictionary of bytes by sequence number, across growth and the wrap."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .door import ct

M = 1 << 32


def pattern(seq, n):
    return bytes((s * 7 + s // 256 * 3) & 255 for s in range(seq, seq + n))


@pytest.mark.parametrize(
    ("need", "size"), [(1, 4096), (4096, 4096), (4097, 8192), (65536, 65536), (3 << 20, 4 << 20)]
)
def test_sizes_are_powers_of_two_from_4096(need, size):
    r = ct.Ring()
    assert r.size == 0
    assert r.reserve(0, 0, need) == (0, False)
    assert r.size == size


def test_nothing_is_reserved_for_nothing():
    r = ct.Ring()
    assert r.reserve(5, 0, 0) == (0, False)
    assert r.size == 0
    assert r.ranges(77, 0) == (b"", b"")
    assert r.read(77, 0) == b""
    r.write(77, b"")


def test_too_much_is_refused_and_changes_nothing():
    r = ct.Ring()
    r.reserve(0, 0, 100)
    r.write(0, b"kept")
    assert r.reserve(0, 4, (1 << 30) + 1) == (-12, False)
    assert (r.size, r.read(0, 4)) == (4096, b"kept")


@pytest.mark.parametrize("base", [0, 4095, M - 1, M - 2000, 123_456_789])
def test_growing_keeps_the_span(base):
    r = ct.Ring()
    r.reserve(base, 0, 4096)
    data = pattern(base, 4096)
    r.write(base, data)
    assert r.reserve(base, 4096, 100_000) == (0, True)
    assert r.size == 131072 and r.read(base, 4096) == data


def test_ranges_split_at_the_end_of_memory():
    r = ct.Ring()
    r.reserve(0, 0, 4096)
    data = pattern(4000, 200)
    r.write(4000, data)
    assert r.ranges(4000, 200) == (data[:96], data[96:])
    assert r.ranges(4000, 96) == (data[:96], b"")
    assert r.ranges(4096, 104) == (data[96:], b"")


def test_release_hands_the_buffer_out():
    r = ct.Ring()
    assert r.release() is False
    r.reserve(0, 0, 1)
    assert r.release() is True
    assert r.size == 0


class RingMachine(RuleBasedStateMachine):
    """A receive queue: bytes arrive anywhere in the window and are read from its start."""

    @initialize(base=st.one_of(st.integers(0, M - 1), st.integers(M - 9000, M - 1)))
    def start(self, base):
        self.ring = ct.Ring()
        self.base = base  # unreduced, so that the model needs no modulo
        self.bytes = {}
        self.span = 0

    @rule(offset=st.integers(0, 20000), data=st.binary(min_size=1, max_size=3000), repeat=st.integers(1, 3))
    def write(self, offset, data, repeat):
        data *= repeat
        rc, _ = self.ring.reserve(self.base % M, self.span, max(self.span, offset + len(data)))
        assert rc == 0
        self.span = max(self.span, offset + len(data))
        self.ring.write((self.base + offset) % M, data)
        for i, b in enumerate(data):
            self.bytes[self.base + offset + i] = b

    @rule(n=st.integers(0, 8000))
    def consume(self, n):
        n = min(n, self.span)
        for s in range(self.base, self.base + n):
            self.bytes.pop(s, None)
        self.base += n
        self.span -= n

    @invariant()
    def every_byte_is_there(self):
        got = self.ring.read(self.base % M, self.span)
        assert all(got[s - self.base] == b for s, b in self.bytes.items())
        first, second = self.ring.ranges(self.base % M, self.span)
        assert first + second == got


RingMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestRingAgainstModel = RingMachine.TestCase
