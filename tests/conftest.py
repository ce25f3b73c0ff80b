"""What holds for every test: no sleeping below interop, and a warning when the test extension is stale."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CORE = TESTS.parent / "ustack" / "core"
SLEEP_ALLOWED = {"interop"}  # directories whose tests talk to something that runs in real time


def pytest_report_header() -> list[str]:
    built = sorted(TESTS.glob("_ctest*.so"))
    if not built:
        return ["tests/_ctest: not built, unit tests of the leaf layers are skipped"]
    newest = max([*CORE.glob("*.pxd"), TESTS / "_ctest.pyx"], key=lambda p: p.stat().st_mtime)
    if newest.stat().st_mtime > built[0].stat().st_mtime:
        return [f"tests/_ctest: OLDER than {newest.name}, rebuild with USTACK_CTEST=1"]
    return ["tests/_ctest: built"]


@pytest.fixture(autouse=True)
def no_sleep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests below interop run in virtual time: a sleep in a test or in ustack itself is a failure there.

    Libraries (subprocess waits by sleeping) are left alone.
    """
    parts = request.path.relative_to(TESTS).parts if request.path.is_relative_to(TESTS) else ()
    if SLEEP_ALLOWED.intersection(parts):
        yield
        return
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] in ("tests", "ustack") or caller.startswith(("test_", "conftest")):
            pytest.fail(f"time.sleep({seconds}) called by {caller}: tests below interop use virtual time")
        real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    yield
