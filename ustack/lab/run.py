"""Scenarios recorded from the kernel, several at a time: most of them wait most of the time.

Each runs in a worker process, in a namespace made for it. When the machine was so busy that the recorder
itself came late by more than `DISTURBED`, the scenario is recorded again (whatever came out of it: the
measure is the recorder's own lateness, not the result).
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from . import errors, kernel
from .bench import Bench
from .scenario import Scenario, load
from .script import Script, full_name

DISTURBED = 0.012
TRIES = 4
CALM_TRIES = 12
JOBS = 8
GLOBAL = ("net.core.rmem_max", "net.core.wmem_max", "net.core.rmem_default", "net.core.wmem_default", "net.ipv4.tcp_mem")
FROM_MEMORY = ("net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_max_tw_buckets", "net.ipv4.tcp_max_orphans")
FASTOPEN_KEY = "net.ipv4.tcp_fastopen_key"
NO_KEY = "00000000-00000000-00000000-00000000"


def _machine_values(names: Sequence[str]) -> dict[str, str]:
    out = {}
    for name in names:
        with contextlib.suppress(OSError):
            out[name] = " ".join(Path("/proc/sys/" + name.replace(".", "/")).read_text().split())
    return out


def _once(scenario: Scenario) -> tuple[dict[str, Any], float, float]:
    host = kernel.Kernel(scenario.congestion)
    bench = Bench(host)
    try:
        for name, value in scenario.sysctl.items():
            bench.sysctl(full_name(name), value)
        script = Script(bench)
        if callable(scenario.steps):
            scenario.steps(script)
        else:
            script.play(scenario.steps)
        bench.finish()
        out: dict[str, Any] = {"id": scenario.id, "section": scenario.section, "desc": scenario.desc, "namespace": "fresh", "app_calls": True,
                               "depends": [], "setup": [], "checks": {}, "file": Path(scenario.file).name, "rules": scenario.rules}
        if scenario.varies:
            out["varies"] = scenario.varies
        if scenario.tolerance:
            out["tolerance"] = scenario.tolerance
        if scenario.draws != 1:
            out["draws"] = scenario.draws
        if host.read_sysctl(FASTOPEN_KEY) != NO_KEY:
            out["tfo_key"] = host.read_sysctl(FASTOPEN_KEY)
        out["n_calls"] = sum("call" in s for s in bench.steps)
        total: dict[str, int] = {}
        for step in bench.steps:
            for key, delta in step.get("counters", {}).items():
                total[key] = total.get(key, 0) + delta
        out |= {"counters_total": total, "t_end": bench.now(), "tick_at": bench.tick_at(), "steps": bench.steps}
        return out, bench.disturbed, bench.behind
    finally:
        bench.dispose()


def record(number: int) -> dict[str, Any]:
    """One of the chosen scenarios as a recording has it; of a scenario that makes no sense `{"id", "section", "error"}`."""
    scenario = _chosen[number]
    try:
        for _ in range(CALM_TRIES if scenario.calm < 1 else TRIES):
            out, disturbed, behind = _once(scenario)
            if disturbed <= DISTURBED and behind <= scenario.calm:
                break
        out["disturbed_ms"], out["behind_ms"] = round(disturbed * 1000, 1), round(behind * 1000, 2)
        return out
    except errors.ScenarioError as e:
        return {"id": scenario.id, "section": scenario.section, "error": f"{scenario.file}: {e}"}


_chosen: Sequence[Scenario] = ()


def _prepare(scenarios: Sequence[Scenario]) -> None:
    """A worker: its own root if need be, and ahead of ordinary processes where that is allowed. It has the scenarios by the fork (their
    steps may be functions of a file, which cannot be sent)."""
    global _chosen
    _chosen = scenarios
    kernel.become_root()
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def record_all(scenarios: Sequence[Scenario], jobs: int = JOBS) -> Iterator[dict[str, Any]]:
    """Recorded scenarios, in the order given."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(jobs, len(scenarios)), context, _prepare, (scenarios,)) as pool:
        yield from pool.map(record, range(len(scenarios)))


def recording(scenarios: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole file around recorded scenarios."""
    meta = {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}", "date": datetime.date.today().isoformat(),
        "lab": "ustack diff --record: a network namespace for each scenario, TUN device tun0 (MTU 1500), kernel 192.0.2.1/24, clients 192.0.2.2 "
               "and 198.51.100.x, IPv6 off",
        "conventions": "t = seconds since the scenario began; hex = full IPv4 packet; counters = change since the mark before",
        "global_sysctls": _machine_values(GLOBAL + FROM_MEMORY), "n_scenarios": len(scenarios), "n_vectors": 0,
        "n_app_calls": len(scenarios), "n_steps": sum(len(s["steps"]) for s in scenarios), "n_calls": sum(s["n_calls"] for s in scenarios),
    }
    return {"meta": meta, "scenarios": scenarios, "vectors": []}


def load_all(paths: Sequence[Path]) -> list[Scenario]:
    """Scenarios of files and of folders of files."""
    files: list[Path] = []
    for path in paths:
        files += sorted(p for p in path.iterdir() if p.suffix in (".toml", ".py")) if path.is_dir() else [path]
    found = [s for f in files for s in load(f)]
    seen: dict[str, str] = {}
    for s in found:
        if s.id in seen:
            raise errors.ScenarioError(f"{s.file}: the id {s.id} is also in {seen[s.id]}")
        seen[s.id] = s.file
    return found
