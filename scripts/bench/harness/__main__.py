"""Measures ustack side by side with the limit of the TUN device, the kernel over veth and other userspace stacks.

Every row is measured in rounds; in a round each peer has its turn, every second round in the opposite order. Printed are medians, spread and
ratios; the exit status is 1 if a sample or a build failed (a peer that should build and does not fails the run), 0 otherwise, whatever the
figures are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import build, measure, net, peers, plots, rows, tables

QUICK_SECONDS, QUICK_ROUNDS = 0.35, 2


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine_facts() -> dict[str, Any]:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    gcc = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "-C", str(build.TOP), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"date": datetime.date.today().isoformat(), "cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
            "python": platform.python_version(), "gcc": gcc, "commit": commit}


def chosen(names: str | None, known: list[str], what: str) -> list[str]:
    if not names:
        return known
    wanted = names.split(",")
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"scripts/bench/run: no such {what}: {', '.join(unknown)} (there are: {', '.join(known)})")
    return [k for k in known if k in wanted]


def arguments() -> argparse.Namespace:
    ask = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true", help="limit, kernel and ustack only, short samples, two rounds, 200,000 half-open "
                     "connections instead of a million: two minutes")
    ask.add_argument("--rows", metavar="A,B", help="only these rows: " + ", ".join(r.name for r in rows.ROWS))
    ask.add_argument("--peers", metavar="A,B", help="only these peers: " + ", ".join(p.name for p in peers.ALL))
    ask.add_argument("--rounds", type=int, help="samples of each peer in each row (default 5)")
    ask.add_argument("--seconds", type=float, help="length of a sample (default 0.7)")
    ask.add_argument("--server-cpu", type=int, default=0)
    ask.add_argument("--client-cpu", type=int, default=1)
    ask.add_argument("--json", type=Path, metavar="FILE", help="write the results there; rows and peers measured before stay")
    ask.add_argument("--plots", type=Path, metavar="DIR", help="draw the results there (SVG; matplotlib)")
    ask.add_argument("--ustack", type=Path, metavar="DIR", help="measure the built ustack of this folder instead of building one (USTACK_PGO=1)")
    return ask.parse_args()


def main() -> int:
    args = arguments()
    if os.geteuid() != 0:
        print("scripts/bench/run: namespaces and TUN devices need root", file=sys.stderr)
        return 3
    plan = rows.Plan()
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else 5)
    if args.quick:
        plan = rows.Plan(seconds=QUICK_SECONDS, many=200_000, hold=10_000, quick=True)
    if args.seconds:
        plan.seconds = args.seconds
    machine = peers.Machine(args.server_cpu, args.client_cpu, args.ustack)
    quick_peers = "limit,kernel,ustack" if args.quick else None
    wanted = chosen(args.peers or quick_peers, [p.name for p in peers.ALL], "peer")
    todo = [r for r in rows.ROWS if r.name in chosen(args.rows, [r.name for r in rows.ROWS], "row")]
    failures: list[str] = []
    taking: list[peers.Peer] = []
    net.guard()
    for kind in peers.ALL:
        if kind.name not in wanted:
            continue
        peer = kind(machine)
        try:
            say(f"build {peer.name}")
            peer.build()
            taking.append(peer)
        except build.Missing as exc:
            say(f"{peer.name} is left out: {exc}")
        except build.Broken as exc:
            say(f"{peer.name} does not build: {exc}")
            failures.append(f"{peer.name} does not build")
    facts = machine_facts()
    taken = {"date": facts.pop("date"), "commit": facts.pop("commit"), "rounds": rounds, "seconds": plan.seconds, "quick": args.quick,
             "profiled": machine.ustack is not None and build.profiled(machine.ustack)}
    before = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"peers": {}, "rows": {}}
    out: dict[str, Any] = {"machine": facts, "peers": {**before["peers"], **{p.name: {"title": p.title, "version": p.version} for p in taking}}}
    start = time.monotonic()
    run = measure.Measurement(taking, plan, say)
    done: list[rows.Row] = []
    try:
        for row in todo:
            say(f"{time.monotonic() - start:6.0f} s  {row.name}")
            run.take(row, rounds)
            done.append(row)
            if args.json:                   # after each row: a run that is ended keeps what it has
                out["rows"] = measure.merge(before["rows"], measure.results(done, run, taken))
                args.json.write_text(json.dumps(out, indent=1) + "\n")
    finally:
        run.close()
        net.remove_all()
    print(tables.text(measure.results(done, run, taken)))
    out["rows"] = measure.merge(before["rows"], measure.results(done, run, taken))
    if args.plots:
        plots.draw(out, args.plots)
    failures += run.failures
    for failure in failures:
        say(f"FAILED: {failure}")
    say(f"{time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
