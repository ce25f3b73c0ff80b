"""Many scripts: one after the other here, or in worker processes.

In real time each script gets a network namespace of its own, which goes with the process that made it or when
that makes the next one; most of such a run is waiting, so several beside each other cost nothing. In virtual
time workers only help where there are processors for them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ustack.drill.options import Options
from ustack.drill.report import Outcome, PcapFile
from ustack.drill.run import run_file

REAL_TIME_JOBS = 4


@dataclass(frozen=True)
class Settings:
    """What all scripts of a command have in common.

    target: "virtual" (ustack in virtual time), "tun" (ustack in real time on a TUN device) or "kernel" (this machine's).
    """

    target: str = "virtual"
    base: Options = field(default_factory=Options)
    command_line: Mapping[str, Any] = field(default_factory=dict)
    defines: Mapping[str, str] = field(default_factory=dict)
    pcap: str | None = None


def run_one(path: str, settings: Settings) -> Outcome:
    """One script in this process; in real time that process gets a new namespace. MachineCannot if it gets none."""
    more: dict[str, Any] = {}
    if settings.target != "virtual":
        from ustack.drill.realtime import HostKernel, UstackOnTun
        from ustack.lab.kernel import CLONE_NEWNET, unshare

        unshare(CLONE_NEWNET)
        more["stack_factory"] = {"tun": UstackOnTun, "kernel": HostKernel}[settings.target]
    with ExitStack() as stack:
        if settings.pcap is not None:
            more["pcap"] = PcapFile(stack.enter_context(open(settings.pcap, "wb")))
        return run_file(path, settings.base, settings.command_line, settings.defines, **more)


def _in_worker(path: str, settings: Settings) -> Outcome:
    outcome = run_one(path, settings)
    rows = [replace(row, raw=None, flow=None) for row in outcome.ladder]
    return replace(outcome, ladder=rows)


def _ready_for_real_time() -> None:
    """A worker: its own root if need be, and ahead of ordinary processes where that is allowed."""
    from ustack.lab.kernel import become_root

    become_root()
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def run_files(paths: Sequence[str], settings: Settings, jobs: int | None = None) -> Iterator[Outcome]:
    """Outcomes in the order of the paths. jobs: worker processes (None: as fits the target)."""
    real = settings.target != "virtual"
    jobs = min(jobs or (REAL_TIME_JOBS if real else 1), len(paths))
    if jobs == 1 and not real:
        for path in paths:
            yield run_one(path, settings)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, _ready_for_real_time if real else None) as pool:
        yield from pool.map(partial(_in_worker, settings=settings), paths, chunksize=1 if real else 8)
