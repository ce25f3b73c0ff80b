"""`python -m ustack.sim SEED | FIRST-LAST`: run simulations; exit code 1 if one fails, with its seed to run it again."""

from __future__ import annotations

import sys
import time

from ustack.sim.run import run


def main(args: list[str]) -> int:
    if len(args) != 1 or not all(part.isdigit() for part in args[0].split("-")) or args[0].count("-") > 1:
        print("usage: python -m ustack.sim SEED | FIRST-LAST", file=sys.stderr)
        return 2
    first, _, last = args[0].partition("-")
    seeds = range(int(first), int(last or first) + 1)
    failed = []
    packets = 0
    virtual = 0.0
    began = time.monotonic()
    for seed in seeds:
        outcome = run(seed)
        packets += outcome.packets
        virtual += outcome.virtual_s
        if outcome.fault:
            failed.append(seed)
            print(f"seed {seed}: {outcome.fault}", flush=True)
        elif len(seeds) == 1:
            print("\n".join(outcome.peers))
    print(f"{len(seeds) - len(failed)} held, {len(failed)} failed; {packets} segments, {virtual / 3600:.1f} h of virtual time in "
          f"{time.monotonic() - began:.1f} s" + (f"; failed: {failed[:20]}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
