"""The connection table against a dictionary; chains, duplicates, replacement, walks that others disturb."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .door import ct

REQ, TCB, TW = ct.KIND_REQ, ct.KIND_TCB, ct.KIND_TW


def flow(i):
    return (0xC0000201, 0xC6336400 + i // 7, 80, 1024 + i)


def table(buckets=16, n=64):
    return ct.EHash(buckets, 0x0123456789ABCDEF, 0xFEDCBA9876543210, n)


def fill(h, entries):
    for i, e in enumerate(entries):
        h.set(e, flow(i))
        assert h.insert(e)


def walk(h, step=None):
    """All entries in the order of a walk; step(entry) may change the table between two calls."""
    bucket, pos, out = 0, 0, []
    while True:
        entry, bucket, pos = h.walk(bucket, pos)
        if entry is None:
            return out
        out.append(entry)
        if step:
            step(entry)


@pytest.mark.parametrize(("entries", "buckets"), [(1, 1), (2, 2), (3, 4), (1000, 1024), (65537, 131072)])
def test_bucket_counts_are_powers_of_two(entries, buckets):
    assert table(entries).buckets == buckets


@pytest.mark.parametrize("entries", [0, (1 << 27) + 1])
def test_senseless_sizes_are_refused(entries):
    assert table(entries).rc == -22


@pytest.mark.parametrize("buckets", [1, 4, 1024])
def test_found_by_the_exact_four_tuple_only(buckets):
    h = table(buckets)
    for kind in (REQ, TCB, TW):
        h.set((kind, 1), flow(kind))
        assert h.insert((kind, 1))
    assert h.count == 3
    for kind in (REQ, TCB, TW):
        la, fa, lp, fp = flow(kind)
        assert h.lookup((la, fa, lp, fp)) == (kind, 1)
        for near in (
            (la + 1, fa, lp, fp),
            (la, fa + 1, lp, fp),
            (la, fa, lp + 1, fp),
            (la, fa, lp, fp + 100),
        ):
            assert h.lookup(near) is None
        assert h.lookup((fa, la, lp, fp)) is None and h.lookup((la, fa, fp, lp)) is None


def test_an_equal_four_tuple_is_not_inserted_twice():
    h = table()
    h.set((REQ, 1), flow(0))
    h.set((TCB, 1), flow(0))
    assert h.insert((REQ, 1))
    assert not h.insert((TCB, 1))
    assert (h.count, h.lookup(flow(0))) == (1, (REQ, 1))
    h.insert_force((TCB, 1))
    assert (h.count, h.lookup(flow(0))) == (2, (TCB, 1))
    assert h.remove((TCB, 1))
    assert h.lookup(flow(0)) == (REQ, 1)


def test_removing_what_is_not_there():
    h = table()
    h.set((REQ, 1), flow(0))
    assert not h.remove((REQ, 1))
    h.insert((REQ, 1))
    assert h.remove((REQ, 1))
    assert not h.remove((REQ, 1))
    assert h.count == 0


def test_replacement_takes_the_place_in_the_chain():
    h = table(1)
    fill(h, [(REQ, 1), (REQ, 2), (REQ, 3)])
    assert walk(h) == [(REQ, 3), (REQ, 2), (REQ, 1)]  # new entries go to the head
    h.set((TCB, 9), flow(1))
    assert h.replace((REQ, 2), (TCB, 9))
    assert walk(h) == [(REQ, 3), (TCB, 9), (REQ, 1)]
    assert (h.lookup(flow(1)), h.count) == ((TCB, 9), 3)
    assert not h.replace((REQ, 2), (TCB, 9))


@pytest.mark.parametrize("buckets", [1, 8, 512])
def test_a_walk_meets_every_entry_once(buckets):
    h = table(buckets)
    entries = [(kind, i) for kind in (REQ, TCB, TW) for i in range(1, 21)]
    fill(h, entries)
    assert sorted(walk(h)) == entries


@pytest.mark.parametrize("buckets", [1, 8])
def test_removing_each_entry_as_it_comes_empties_the_table(buckets):
    h = table(buckets)
    entries = [(TCB, i) for i in range(1, 41)]
    fill(h, entries)
    assert sorted(walk(h, h.remove)) == entries
    assert h.count == 0


def test_a_disturbed_walk_leaves_nothing_out_that_stays():
    h = table(2)
    fill(h, [(TCB, i) for i in range(1, 31)])
    gone = set()

    def disturb(entry):
        if entry[1] % 3 == 0 and h.remove(entry):
            gone.add(entry)

    seen = walk(h, disturb)
    assert set(seen) | gone == {(TCB, i) for i in range(1, 31)}


def test_a_walk_in_portions():
    h = table(4096)
    fill(h, [(TCB, i) for i in range(1, 31)])
    bucket, pos, seen, turns = 0, 0, [], 0
    while bucket < h.buckets:
        budget = 100
        turns += 1
        while True:
            entry, bucket, pos, budget = h.walk_some(bucket, pos, budget)
            if entry is None:
                break
            seen.append(entry)
    assert sorted(seen) == [(TCB, i) for i in range(1, 31)]
    assert turns == -(-(4096 + 30) // 100)


entries = st.tuples(st.integers(1, 3), st.integers(1, 4))


class EHashMachine(RuleBasedStateMachine):
    @initialize(buckets=st.sampled_from([1, 2, 16]))
    def start(self, buckets):
        self.h = ct.EHash(buckets, 1, 2, 4)
        self.chain = []  # (entry, flow), newest first

    def held(self, entry):
        return next((f for e, f in self.chain if e == entry), None)

    def newest(self, f):
        return next((e for e, g in self.chain if g == f), None)

    @rule(entry=entries, i=st.integers(0, 5), force=st.booleans())
    def insert(self, entry, i, force):
        if self.held(entry):
            return
        self.h.set(entry, flow(i))
        if force:
            self.h.insert_force(entry)
        else:
            assert self.h.insert(entry) == (self.newest(flow(i)) is None)
        if force or self.newest(flow(i)) is None:
            self.chain.insert(0, (entry, flow(i)))

    @rule(entry=entries)
    def remove(self, entry):
        assert self.h.remove(entry) == (self.held(entry) is not None)
        self.chain = [(e, f) for e, f in self.chain if e != entry]

    @precondition(lambda self: self.chain)
    @rule(k=st.integers(0, 11), new=entries)
    def replace(self, k, new):
        old, f = self.chain[k % len(self.chain)]
        if self.held(new):
            return
        self.h.set(new, f)
        assert self.h.replace(old, new)
        self.chain = [(new if e == old else e, g) for e, g in self.chain]

    @invariant()
    def agrees(self):
        assert self.h.count == len(self.chain)
        for i in range(6):
            assert self.h.lookup(flow(i)) == self.newest(flow(i))
        assert sorted(walk(self.h)) == sorted(e for e, _ in self.chain)


EHashMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestEHashAgainstModel = EHashMachine.TestCase


def test_twice_as_many_entries_as_the_few_buckets_use_them_all():
    def wide(i):
        return (0xC0000201, 0xC6336400 + i // 10000, 80, 1024 + i % 10000)

    n = 2 * 65536 + 1
    h = table(1 << 18, n)
    for i in range(1, n + 1):
        h.set((TCB, i), wide(i % (n - 1)))          # the last has the first one's 4-tuple
        h.insert_force((TCB, i))
    assert h.lookup(wide(0)) == (TCB, n - 1) and h.lookup(wide(1)) == (TCB, n), "the newer comes first"
    assert all(h.lookup(wide(i)) == (TCB, i) for i in range(2, n - 1))
    assert sorted(walk(h)) == [(TCB, i) for i in range(1, n + 1)]
