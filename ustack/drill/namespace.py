"""Processes with a network namespace of their own, for runs in real time.

Each script gets a fresh namespace, which goes with the process that made it or when that makes the next one.
Most of a script's time is waiting, so several run beside each other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from ustack.drill.options import Options
from ustack.drill.realtime import HostKernel, UstackOnTun
from ustack.drill.report import Outcome
from ustack.drill.run import run_file
from ustack.lab.kernel import CLONE_NEWNET, become_root, unshare

TARGETS: dict[str, Callable[[Options], Any]] = {"ustack": UstackOnTun, "kernel": HostKernel}


def _ready() -> None:
    """A worker: its own root if need be, and ahead of ordinary processes where that is allowed."""
    become_root()
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def _one(path: str, target: str, base: Options, command_line: Mapping[str, Any], defines: Mapping[str, str]) -> Outcome:
    unshare(CLONE_NEWNET)
    return run_file(path, base, command_line, defines, stack_factory=TARGETS[target])


def run_files(paths: Sequence[str], target: str, base: Options, command_line: Mapping[str, Any], defines: Mapping[str, str],
              jobs: int = 1) -> Iterator[Outcome]:
    """Outcomes in the order of the paths. lab.errors.MachineCannot if no namespace can be made."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(jobs, len(paths)), context, _ready) as pool:
        yield from pool.map(partial(_one, target=target, base=base, command_line=command_line, defines=defines), paths)
