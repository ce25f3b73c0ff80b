"""Takes the samples, one peer after the other within each round, and reduces them: medians, best, spread, ratios.

A ratio of two peers is taken round by round, where both were measured within seconds of each other, and its median is given: a machine that is
slower for a minute is slower for both.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .peers import Peer
from .process import Failed, Server
from .rows import Plan, Row, Sample

NOISY = 0.06                # share of the time lost to others from which a sample counts only for want of better ones
TRIES = 2


class Measurement:
    """All samples of a run: samples[row][peer] is a list, a place per round, None where a sample failed."""

    def __init__(self, peers: Sequence[Peer], plan: Plan, say: Any = None) -> None:
        self.peers = list(peers)
        self.plan = plan
        self.samples: dict[str, dict[str, list[Sample | None]]] = {}
        self.failures: list[str] = []
        self._kept: dict[tuple[str, str], Server] = {}
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))

    def takes_part(self, row: Row, peer: Peer) -> bool:
        return row.mode in peer.modes and peer.name not in row.without and (peer.only is None or row.name in peer.only)

    @contextlib.contextmanager
    def _server(self, row: Row, peer: Peer) -> Any:
        """A ready server: one that is kept from row to row where that makes no difference, a new one otherwise."""
        key = (peer.name, row.mode)
        server = self._kept.get(key) if row.keeps else None
        if server is None:
            self._make_room(peer)
            server = peer.start(row.mode)
        elif not peer.idle_is_free:
            server.pause(False)
        if row.keeps:
            self._kept[key] = server
        try:
            yield server
        except BaseException:
            self._kept.pop(key, None)
            server.stop()
            raise
        if not row.keeps:
            server.stop()
        elif not peer.idle_is_free:
            server.pause(True)

    def _make_room(self, peer: Peer) -> None:
        """A peer's wire holds one server at a time."""
        for key in [k for k in self._kept if k[0] == peer.name]:
            self._kept.pop(key).stop()

    def _sample(self, row: Row, peer: Peer) -> Sample | None:
        for attempt in range(TRIES):
            try:
                with self._server(row, peer) as server:
                    return row.take(peer, server, self.plan)
            except Exception as exc:        # one sample that cannot be taken does not cost the others
                error = str(exc) if isinstance(exc, Failed) else repr(exc)
                self._say(f"  {row.name}, {peer.name}: {error}" + ("; once more" if attempt + 1 < TRIES else ""))
        self.failures.append(f"{row.name}, {peer.name}: {error}")
        return None

    def take(self, row: Row, rounds: int) -> None:
        """All rounds of a row. Every second round goes through the peers backwards."""
        part = [p for p in self.peers if self.takes_part(row, p)]
        place = self.samples.setdefault(row.name, {})
        most = row.rounds or rounds
        if row.rounds and self.plan.quick:
            most = 1
        for number in range(min(rounds, most)):
            for peer in part if number % 2 == 0 else reversed(part):
                mine = place.setdefault(peer.name, [])
                if number >= peer.most_rounds or (mine and all(s is None for s in mine)):
                    continue            # enough, or it failed in the first round: not again
                mine.append(self._sample(row, peer))

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].stop()


def clean(samples: Iterable[Sample | None]) -> list[Sample]:
    """The samples that count: those that lost little time to others, or all if these are fewer than three and fewer than half."""
    there = [s for s in samples if s is not None]
    good = [s for s in there if s.get("lost", 0.0) <= NOISY]
    return good if len(good) >= 3 or (2 * len(good) >= len(there) and good) else there


def reduce(row: Row, samples: Sequence[Sample | None]) -> dict[str, Any] | None:
    """Median, best, lowest and highest of a peer's samples, and the medians of what came with them."""
    used = clean(samples)
    if not used:
        return None
    values = [s["value"] for s in used]
    out: dict[str, Any] = {
        "median": statistics.median(values), "best": max(values) if row.better == "more" else min(values),
        "lowest": min(values), "highest": max(values), "samples": len(used), "of": len(samples),
        "noisy": any(s.get("lost", 0.0) > NOISY for s in used),
    }
    for key in sorted({k for s in used for k in s} - {"value"}):
        out[key] = statistics.median(s[key] for s in used if key in s)
    return out


def ratio(row: Row, samples: dict[str, list[Sample | None]], peer: str, to: str) -> dict[str, float] | None:
    """peer / to: the median of the rounds' ratios, and the ratio of the bests."""
    mine, theirs = samples.get(peer, []), samples.get(to, [])
    a, b = reduce(row, mine), reduce(row, theirs)
    if a is None or b is None or not b["best"]:
        return None
    used_mine, used_theirs = clean(mine), clean(theirs)
    pairs = [x["value"] / y["value"] for x, y in zip(mine, theirs, strict=False)
             if x is not None and y is not None and x in used_mine and y in used_theirs and y["value"]]
    return {"median": statistics.median(pairs) if pairs else a["median"] / b["median"] if b["median"] else 0.0, "best": a["best"] / b["best"]}


def results(rows: Sequence[Row], measurement: Measurement, taken: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON of the rows: figures by peer, ratios of ustack to every other; taken: when and how, kept with each row."""
    out: dict[str, Any] = {}
    for row in rows:
        samples = measurement.samples.get(row.name, {})
        figures = {name: reduced for name, taken in samples.items() if (reduced := reduce(row, taken)) is not None}
        ratios = {name: r for name in figures if name != "ustack" and (r := ratio(row, samples, "ustack", name)) is not None}
        out[row.name] = {
            "title": row.title, "unit": row.unit, "better": row.better, "figures": figures, "ratios": ratios,
            "must": {k: v for k, v in (("limit", row.to_limit), ("kernel", row.to_kernel)) if v is not None},
            "most": row.most, "taken": taken or {},
            "values": {name: [None if s is None else round(s["value"], 3) for s in taken] for name, taken in samples.items()},
        }
    return out


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Rows measured now over rows kept from before, peer by peer, so that some peers can be measured later. Then ustack is measured again as
    their anchor: the new ratios stand, but its own figure stays the one that was taken beside the limit and the kernel."""
    out = {name: {**row} for name, row in old.items()}
    for name, row in new.items():
        kept = out.get(name)
        if kept is None:
            out[name] = row
            continue
        beside = {"limit", "kernel"}
        anchored = not beside & set(row["figures"]) and bool(beside & set(kept["figures"])) and "ustack" in kept["figures"]
        for part in ("figures", "values"):
            fresh = {k: v for k, v in row[part].items() if not (anchored and k == "ustack")}
            row[part] = {**kept[part], **fresh}
        ratios = {**kept["ratios"], **row["ratios"]}
        mine = row["figures"].get("ustack")
        for peer, figure in row["figures"].items():
            if mine and peer != "ustack" and peer not in ratios and figure["median"] and figure["best"]:
                ratios[peer] = {"median": mine["median"] / figure["median"], "best": mine["best"] / figure["best"]}
        row["ratios"] = ratios
        if anchored:
            row["taken"] = kept["taken"]
        out[name] = row
    return out
