"""The timing wheel against a sorted list: the slots must not show."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from .door import ct

US, MS, SEC, DAY = 1_000, 1_000_000, 1_000_000_000, 86_400_000_000_000
TICK = 1 << 14


class Model:
    """Armed timers as {timer: (deadline, order of arming)}."""

    def __init__(self):
        self.armed = {}
        self.order = 0

    def arm(self, timer, deadline):
        self.order += 1
        self.armed[timer] = (deadline, self.order)

    def first(self):
        return min(self.armed, key=self.armed.__getitem__, default=None)

    def next(self):
        return min(self.armed.values())[0] if self.armed else ct.NS_NEVER

    def pop(self, now):
        timer = self.first()
        if timer is None or self.armed[timer][0] > now:
            return None
        del self.armed[timer]
        return timer


timers = st.tuples(st.integers(1, 3), st.integers(1, 5))
# Distances on every level of the wheel, with its tick and slot borders.
scales = st.sampled_from(
    [
        1,
        100,
        US,
        TICK - 1,
        TICK,
        TICK + 1,
        64 * TICK,
        64 * TICK - 1,
        MS,
        4096 * TICK,
        200 * MS,
        SEC,
        64**3 * TICK,
        120 * SEC,
        DAY,
        30 * DAY,
    ]
)
distances = st.builds(lambda n, scale, off: n * scale + off, st.integers(-2, 70), scales, st.integers(-2, 2))
starts = st.sampled_from([0, 1, TICK, 1_234_567_890_123, 64**4 * TICK - 1, 1 << 61])


class WheelMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.wheel = None

    def start(self, now):
        self.now = now
        self.wheel = ct.Wheel(now, 5)
        self.model = Model()
        self.last = now

    @precondition(lambda self: self.wheel is None)
    @rule(now=starts)
    def begin(self, now):
        self.start(now)

    @precondition(lambda self: self.wheel)
    @rule(timer=timers, distance=distances)
    def arm(self, timer, distance):
        self.last = self.now + distance
        self.wheel.arm(*timer, self.last)
        self.model.arm(timer, self.last)

    @precondition(lambda self: self.wheel)
    @rule(timer=timers)
    def arm_at_an_equal_deadline(self, timer):
        self.wheel.arm(*timer, self.last)
        self.model.arm(timer, self.last)

    @precondition(lambda self: self.wheel)
    @rule(timer=timers)
    def disarm(self, timer):
        self.wheel.disarm(*timer)
        self.model.armed.pop(timer, None)

    @precondition(lambda self: self.wheel)
    @rule()
    def disarm_the_first(self):
        timer = self.model.first()
        if timer:
            self.wheel.disarm(*timer)
            del self.model.armed[timer]

    def pop_all(self, rearm):
        for distance in rearm:
            timer = self.wheel.pop(self.now)
            assert timer == self.model.pop(self.now)
            if timer is None:
                return
            assert not self.wheel.armed(*timer)
            if distance is not None:
                self.wheel.arm(*timer, self.now + distance)
                self.model.arm(timer, self.now + distance)
        while (timer := self.wheel.pop(self.now)) is not None:
            assert timer == self.model.pop(self.now)
        assert self.model.pop(self.now) is None

    @precondition(lambda self: self.wheel)
    @rule(ahead=distances, rearm=st.lists(st.one_of(st.none(), distances), max_size=6))
    def advance_and_pop(self, ahead, rearm):
        self.now += max(ahead, 0)
        self.pop_all(rearm)

    @precondition(lambda self: self.wheel and self.model.armed)
    @rule(rearm=st.lists(st.one_of(st.none(), distances), max_size=6), early=st.booleans())
    def advance_to_the_next_deadline(self, rearm, early):
        when = self.wheel.next()
        if early and when > self.now:
            self.now = when - 1
            assert self.wheel.pop(self.now) is None
        self.now = max(self.now, when)
        self.pop_all(rearm)

    @invariant()
    def agrees(self):
        if self.wheel is None:
            return
        assert self.wheel.next_bound() <= self.model.next()
        assert self.wheel.next() == self.model.next()
        assert self.wheel.count() == len(self.model.armed)
        for kind in (1, 2, 3):
            for i in range(1, 6):
                deadline = self.model.armed.get((kind, i), (ct.NS_NEVER,))[0]
                assert self.wheel.deadline(kind, i) == deadline
                assert self.wheel.armed(kind, i) == ((kind, i) in self.model.armed)


WheelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWheelAgainstModel = WheelMachine.TestCase


@pytest.mark.parametrize("seed", range(6))
def test_many_timers_in_a_long_seeded_run(seed):
    """Hundreds of timers, so that slots are crowded and sorting has work."""
    rnd = random.Random(seed)
    now = rnd.randrange(1 << 50)
    n = 300
    wheel, model = ct.Wheel(now, n), Model()
    spread = [TICK, 200 * US, 50 * MS, SEC, 100 * SEC, DAY][seed]
    for _ in range(4000):
        timer = (rnd.randint(1, 3), rnd.randint(1, n))
        what = rnd.random()
        if what < 0.55:
            ahead = [rnd.randrange(spread), rnd.randrange(8) * spread // 8, -rnd.randrange(spread)]
            deadline = now + rnd.choice(ahead)
            wheel.arm(*timer, deadline)
            model.arm(timer, deadline)
        elif what < 0.75:
            wheel.disarm(*timer)
            model.armed.pop(timer, None)
        elif what < 0.9:
            assert wheel.next() == model.next()
        else:
            now += rnd.randrange(spread // 16)
            while (popped := wheel.pop(now)) is not None:
                assert popped == model.pop(now)
            assert model.pop(now) is None
    while model.armed:
        now = max(now, wheel.next())
        assert now == max(now, model.next())
        assert wheel.pop(now) == model.pop(now)
    assert wheel.next() == ct.NS_NEVER and wheel.count() == 0


def test_equal_deadlines_fire_in_the_order_of_arming_whenever_they_were_armed():
    wheel = ct.Wheel(0, 10)
    deadline = 5 * SEC + 123
    for i in range(1, 11):  # each from a different distance, hence through different slots
        wheel.arm(1, i, deadline)
        assert wheel.pop(i * SEC // 3) is None
    assert [wheel.pop(deadline) for _ in range(11)] == [(1, i) for i in range(1, 11)] + [None]


def test_arming_again_goes_to_the_end_of_the_equals():
    wheel = ct.Wheel(0, 3)
    for i in (1, 2, 3, 1):
        wheel.arm(1, i, SEC)
    assert [wheel.pop(SEC) for _ in range(4)] == [(1, 2), (1, 3), (1, 1), None]


def test_nothing_fires_a_nanosecond_early():
    wheel = ct.Wheel(0, 1)
    wheel.arm(1, 1, 204 * MS)
    assert wheel.next() == 204 * MS
    assert wheel.pop(204 * MS - 1) is None
    assert wheel.pop(204 * MS) == (1, 1)


def test_past_deadlines_come_first_and_in_their_own_order():
    wheel = ct.Wheel(10 * SEC, 4)
    wheel.arm(1, 1, 10 * SEC)
    wheel.arm(1, 2, 3 * SEC)
    wheel.arm(1, 3, -5)
    wheel.arm(1, 4, 3 * SEC)
    assert wheel.next() == -5
    assert [wheel.pop(10 * SEC) for _ in range(4)] == [(1, 3), (1, 2), (1, 4), (1, 1)]


def test_never_is_never():
    wheel = ct.Wheel(0, 2)
    wheel.arm(1, 1, ct.NS_NEVER)
    assert wheel.next() == ct.NS_NEVER and wheel.armed(1, 1)
    assert wheel.pop(1000 * DAY) is None
    wheel.arm(1, 2, 1001 * DAY)
    assert wheel.next() == 1001 * DAY
    wheel.disarm(1, 1)
    assert wheel.count() == 1


def test_time_may_stand_still_or_jump_far():
    wheel = ct.Wheel(0, 3)
    wheel.arm(1, 1, DAY)
    wheel.arm(2, 1, DAY + 1)
    wheel.arm(3, 1, 400 * DAY)
    assert wheel.pop(0) is None
    assert [wheel.pop(500 * DAY) for _ in range(4)] == [(1, 1), (2, 1), (3, 1), None]


@pytest.mark.parametrize("seed", range(30))
def test_put_off_timers_come_at_their_times(seed):
    """Timers that are put off in place: all that are due come, none before its time, in order of deadlines; the bound is never too late."""
    rng = random.Random(seed)
    now = rng.randrange(0, 5 * SEC)
    wheel = ct.Wheel(now, 40)
    due = {}
    span = rng.choice((50 * US, 5 * MS, SEC, 300 * SEC))
    for _ in range(400):
        timer = (rng.randint(1, 3), rng.randint(1, 40))
        what = rng.random()
        deadline = now + rng.randrange(-span // 10, span)
        if what < 0.6:
            if timer in due and rng.random() < 0.7:
                deadline = due[timer] + rng.randrange(span)
            wheel.put_off(*timer, deadline)
            due[timer] = deadline
        elif what < 0.7:
            wheel.arm(*timer, deadline)
            due[timer] = deadline
        elif what < 0.8:
            wheel.disarm(*timer)
            due.pop(timer, None)
        else:
            now += rng.randrange(span // 2)
            last = None
            while (timer := wheel.pop(now)) is not None:
                deadline = due.pop(timer)
                assert deadline <= now and (last is None or last <= deadline)
                last = deadline
            assert not due or min(due.values()) > now
        assert wheel.count() == len(due)
        if due:
            assert wheel.next_bound() <= min(due.values())
            assert all(wheel.deadline(*timer) == deadline for timer, deadline in due.items())
