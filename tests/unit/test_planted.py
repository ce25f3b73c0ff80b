"""Bugs on purpose: USTACK_PLANT=shift|overrun|stale makes one happen, so that scripts/sanitize can prove that
such a bug ends its run.

The test passes with each of them unless the sanitizers are built in and stop it, and it passes without one.
That is the point: nothing but a sanitizer's report can fail it.
"""

from __future__ import annotations

import os

import pytest

ctest = pytest.importorskip("tests._ctest", reason="built with USTACK_CTEST=1 only")
BUG = os.environ.get("USTACK_PLANT", "")


def test_shift() -> None:
    ctest.plant_shift(40 if BUG == "shift" else 4)


def test_overrun() -> None:
    ctest.plant_overrun(8 if BUG == "overrun" else 7)


@pytest.mark.skipif(BUG != "stale",
                    reason="only USTACK_PLANT=stale: there is no right way to read a free slot")
def test_stale() -> None:
    ctest.plant_stale()
