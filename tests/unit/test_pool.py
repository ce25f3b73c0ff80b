"""Pools: indices from 1, LIFO reuse, zeroed slots, stable addresses, stale generations that never match."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .door import ct


def test_indices_start_at_one_and_end_at_the_cap():
    p = ct.Pool(3, 64)
    assert [p.alloc() for _ in range(4)] == [1, 2, 3, 0]
    assert (p.used, p.high) == (3, 3)


def test_last_freed_comes_back_first_and_zeroed():
    p = ct.Pool(8, 24)
    for i in (1, 2, 3):
        assert p.alloc() == i
        assert p.get(i) == bytes(24)
        p.fill(i, 0xAA)
    p.free(1)
    p.free(3)
    assert p.used == 1
    assert [p.alloc(), p.alloc(), p.alloc()] == [3, 1, 4]
    assert p.get(3) == p.get(1) == bytes(24)
    assert p.get(2) == b"\xaa" * 24
    assert p.high == 4


def test_exhausted_pool_recovers_after_a_free():
    p = ct.Pool(1, 16)
    assert (p.alloc(), p.alloc()) == (1, 0)
    p.free(1)
    assert p.alloc() == 1


def test_addresses_are_stable_and_a_stride_apart():
    p = ct.Pool(1000, 48)
    a = [p.address(p.alloc()) for _ in range(1000)]
    assert a == [a[0] + 48 * i for i in range(1000)]
    assert p.address(1) == a[0]


def test_a_huge_cap_costs_nothing_until_touched():
    p = ct.Pool((1 << 28) - 1, 64)  # 16 GiB of address space
    assert p.rc == 0
    assert p.alloc() == 1


@pytest.mark.parametrize(("cap", "stride"), [(0, 64), (1 << 28, 64), (4, 3)])
def test_senseless_sizes_are_refused(cap, stride):
    p = ct.Pool(cap, stride)
    assert p.rc == -22
    p.destroy()


def test_destroy_twice_is_harmless():
    p = ct.Pool(4, 64, True)
    p.alloc()
    p.destroy()
    p.destroy()


def test_generations():
    p = ct.Pool(4, 16, True)
    i = p.alloc()
    old = p.gen(i)
    assert p.live(i, old)
    p.free(i)
    assert not p.live(i, old)
    assert not p.live(i, p.gen(i))  # the generation of a free slot is no handle either
    assert p.alloc() == i
    assert not p.live(i, old)
    assert p.live(i, p.gen(i))
    assert not p.live(0, 1) and not p.live(2, 1) and not p.live(1 << 27, 1)


def test_a_plain_pool_has_no_generations():
    p = ct.Pool(4, 16)
    i = p.alloc()
    assert p.gen(i) == 0
    assert not p.live(i, 0)


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=120))
def test_against_a_model(ops):
    cap = 20
    p = ct.Pool(cap, 16, True)
    live, free, high, handles = {}, [], 0, []
    for op in ops:
        if op is None:
            want = free.pop() if free else (high + 1 if high < cap else 0)
            high = max(high, want)
            got = p.alloc()
            assert got == want
            if got:
                live[got] = p.gen(got)
                handles.append((got, p.gen(got)))
        elif live:
            i = sorted(live)[op % len(live)]
            del live[i]
            free.append(i)
            p.free(i)
        assert (p.used, p.high) == (len(live), high)
    assert len(set(handles)) == len(handles)
    for i, gen in handles:
        assert p.live(i, gen) == (live.get(i) == gen)
