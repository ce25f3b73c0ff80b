"""What holds for every test: no sleep, no leaks below interop; a warning when the test extension is stale."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.leaks import Watch

TESTS = Path(__file__).parent
Report = pytest.TestReport
PASSED = pytest.StashKey[bool]()
CORE = TESTS.parent / "ustack" / "core"
# How fast examples are made says something about the machine's load and nothing about the project: no test fails for it.
settings.register_profile("ustack", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ustack")
REAL_TIME = {"interop"}  # directories whose tests talk to something that runs in real time


def pytest_configure() -> None:
    """A run in the background (nohup, some CI) ignores Ctrl-C, and its children inherit that; programs under test must see it as users' do."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    built = sorted(TESTS.glob("_ctest*.so"))
    if not built:
        return ["tests/_ctest: not built, unit tests of the leaf layers are skipped"]
    newest = max([*CORE.glob("*.pxd"), TESTS / "_ctest.pyx"], key=lambda p: p.stat().st_mtime)
    if newest.stat().st_mtime > built[0].stat().st_mtime:
        return [f"tests/_ctest: OLDER than {newest.name}, rebuild with USTACK_CTEST=1"]
    return ["tests/_ctest: built"]


def in_real_time(path: Path) -> bool:
    return path.is_relative_to(TESTS) and not REAL_TIME.isdisjoint(path.relative_to(TESTS).parts)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that is busy with something else comes late: what talks to something real is tried up to three times, the summary counts the
    reruns. In virtual time nothing is late and nothing is tried again."""
    for item in items:
        if in_real_time(item.path) or item.get_closest_marker("root"):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Report,
                                                                                           Report]:
    """Leave the outcome where the fixtures below find it."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every stack in virtual time that the test made gives back all it took (tests/kit/leaks.py)."""
    if in_real_time(request.path):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        yield
    if request.node.stash.get(PASSED, False):
        watch.check()
    else:
        watch.forget()


@pytest.fixture(autouse=True)
def no_sleep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests below interop run in virtual time: a sleep in a test or in ustack itself is a failure there.

    Libraries (subprocess waits by sleeping) are left alone.
    """
    if in_real_time(request.path):
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
