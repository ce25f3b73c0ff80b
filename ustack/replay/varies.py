"""What a recording says that runs of the same kernel differ in (`varies`), and how it is compared
nevertheless.

The field is text for people; the kinds that occur are told by their words:

* which of several equally old requests is dropped ("which of the equally old"): the 4-tuples that got the
  same packets at the same time form a group, and the group's outcomes must be the recorded ones in any
  order;
* which SO_REUSEPORT member gets a connection ("keyed hash"): a 4-tuple may have the outcome of any member
  of its group (what it is told depends on whether its listener was closed), and the figures that count such
  outcomes must agree with the packets seen: resets out, segments out, connections waiting in the listeners
  taken together;
* the moment of delayed ACKs ("delayed ACK"): pure ACKs are taken out of the comparison, but must be in
  order, end at the recorded number, and be neither under half nor over twice as many;
* pacing ("pacing"): times before the first retransmission are free, the order is not;
* a reading near the timer that it reads ("SO_ERROR is read"): the error may show one reading earlier.

The phase of the cookie epoch and timers near the end of a scenario need no rule here: the stack is given
the phase, and the rule for times knows the end. A text of another kind makes a difference that is found a
skip, with the text as its reason, never a pass.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from . import packet as wire
from .match import Emission, Flow, Key, Matcher, key_of, masked_options
from .recording import PacketStep, Scenario
from .timing import EARLY, LATENCY, MS, lateness, may_fall_after

Fault = tuple[float, str, str, str]
Row = dict[str, Any]
Shape = tuple[Any, ...]

ORDER, SPREAD, ACKS, PACING, READING, SETTLED = "order", "spread", "acks", "pacing", "reading", "settled"
_WORDS = ((ORDER, ("which of the equally old",)), (SPREAD, ("keyed hash",)),
          (ACKS, ("delayed ACK", "which segments an ACK covers", "as J-ack2")), (PACING, ("pacing",)),
          (READING, ("SO_ERROR is read",)), (SETTLED, ("cookie epoch", "fall inside")))
_OUTCOME_COUNTERS = frozenset({"TcpEstabResets", "TcpCurrEstab", "TcpPassiveOpens", "TcpExtTCPPureAcks",
                               "TcpExtTCPMigrateReqSuccess", "TcpOutSegs", "TcpOutRsts"})
_ACK_COUNTERS = frozenset({"TcpOutSegs", "TcpExtDelayedACKs", "TcpExtDelayedACKLocked", "TcpExtTCPHPHits",
                           "TcpExtTCPRcvCoalesce", "TcpExtTCPToZeroWindowAdv", "TcpExtTCPWantZeroWindowAdv",
                           "TcpExtTCPFromZeroWindowAdv", "TcpExtTCPAutoCorking"})
_SAME_TIME = 50 * MS


def kinds(text: str | None) -> frozenset[str]:
    """The kinds of variation a text speaks of; empty for a text of another kind."""
    if not text:
        return frozenset()
    return frozenset(kind for kind, words in _WORDS if any(w in text for w in words))


def _shape(raw: bytes, isn: int | None) -> Shape:
    """A TCP packet without its addresses, ports and random numbers."""
    p = wire.parse(raw)
    if p is None or p.tcp is None:
        return (raw,)
    t = p.tcp
    seq = 0 if t.flags & wire.SYN else (t.seq - (isn or 0)) & 0xFFFFFFFF
    return (t.flags, seq, t.ack, t.window, t.urgent, masked_options(t), t.payload, p.tos, p.ttl, p.frag,
            bool(p.ident), p.ip_options)


def shapes(packets: Sequence[bytes]) -> tuple[Shape, ...]:
    """The outcome of a 4-tuple: its packets, sequence numbers counted from its own last ISN."""
    out = []
    isn: int | None = None
    for raw in packets:
        p = wire.parse(raw)
        if p and p.tcp and p.tcp.flags & wire.SYN:
            isn = p.tcp.seq
        out.append(_shape(raw, isn))
    return tuple(out)


def is_pure_ack(raw: bytes) -> bool:
    p = wire.parse(raw)
    return bool(p and p.tcp and p.tcp.flags == wire.ACK and not p.tcp.payload)


def is_reset(raw: bytes) -> bool:
    p = wire.parse(raw)
    return bool(p and p.tcp and p.tcp.flags & wire.RST)


class Variation:
    """The allowances of one scenario. Asked by the matcher and the comparisons while the replay runs."""

    def __init__(self, scenario: Scenario) -> None:
        self.text = scenario.varies
        self.kinds = kinds(scenario.varies)
        self.end = round(scenario.t_end * 1e9)
        self.steps = list(scenario.packets())
        self.groups = self._groups() if self.kinds & {ORDER, SPREAD} else {}
        self.acks: dict[Key, list[Emission]] = defaultdict(list)
        self.first_again = self._first_retransmission() if PACING in self.kinds else 0

    @property
    def unclear(self) -> bool:
        """The text says something varies that this file has no rule for."""
        return bool(self.text) and not self.kinds

    def ignored_counters(self) -> frozenset[str]:
        names: frozenset[str] = frozenset()
        if SPREAD in self.kinds:
            names |= _OUTCOME_COUNTERS
        if ACKS in self.kinds:
            names |= _ACK_COUNTERS
        return names

    def _groups(self) -> dict[Key, tuple[Key, ...]]:
        """4-tuples that were treated alike, each with its whole group; groups of one are left out."""
        sent: dict[Key, list[PacketStep]] = defaultdict(list)
        for s in self.steps:
            p = wire.parse(s.packet)
            if s.injected and p and p.tcp:
                sent[key_of(s.packet, True)].append(s)
        by_shape: dict[Any, list[Key]] = defaultdict(list)
        for key, steps in sent.items():
            by_shape[(key[1], tuple(self._sent_shape(s.packet) for s in steps))].append(key)
        out: dict[Key, tuple[Key, ...]] = {}
        for same in by_shape.values():
            for group in self._by_age(same, sent) if ORDER in self.kinds else [same]:
                if len(group) > 1:
                    out |= dict.fromkeys(group, tuple(group))
        return out

    @staticmethod
    def _sent_shape(raw: bytes) -> Shape:
        p = wire.parse(raw)
        if p is None or p.tcp is None:
            return (raw,)
        return p.tcp.flags, p.tcp.window, p.tcp.payload, p.tcp.options[:4]

    @staticmethod
    def _by_age(keys: list[Key], sent: dict[Key, list[PacketStep]]) -> list[list[Key]]:
        out: list[list[Key]] = []
        for key in sorted(keys, key=lambda k: sent[k][0].at):
            if out and sent[key][0].at - sent[out[-1][0]][0].at <= _SAME_TIME:
                out[-1].append(key)
            else:
                out.append([key])
        return out

    def _first_retransmission(self) -> int:
        seen: set[tuple[Key, int]] = set()
        for s in self.steps:
            p = wire.parse(s.packet)
            if s.injected or p is None or p.tcp is None or not p.tcp.payload:
                continue
            mark = (key_of(s.packet, False), p.tcp.seq)
            if mark in seen:
                return s.at
            seen.add(mark)
        return self.end

    def expects(self, step: PacketStep) -> bool:
        """Is this recorded packet matched one by one?"""
        return not (ACKS in self.kinds and is_pure_ack(step.packet))

    def diverts(self, e: Emission) -> bool:
        """Take a packet of the stack out of the one-by-one matching."""
        if ACKS in self.kinds and is_pure_ack(e.raw):
            self.acks[key_of(e.raw, False)].append(e)
            return True
        return False

    def is_loose(self, key: Key) -> bool:
        """Does this 4-tuple belong to a group that is compared as a whole at the end?"""
        return key in self.groups

    def time_is_free(self, step: PacketStep) -> bool:
        return PACING in self.kinds and step.at < self.first_again

    def rows(self, rows: Sequence[Row], sent: Sequence[bytes]) -> list[Row]:
        """A socket table with what may be exchanged made alike; `sent`: the packets sent until then."""
        if not self.kinds & {ORDER, SPREAD}:
            return [self._without_ack_figures(r) for r in rows] if ACKS in self.kinds else list(rows)
        out: list[Row] = []
        waiting: dict[tuple[str, int], int] = Counter()
        for r in rows:
            key = (r.get("peer", ""), r.get("local", ""))
            if SPREAD in self.kinds and r.get("state") == "LISTEN":
                waiting[r["local"], r["sendq"]] += r["recvq"]
                out.append(r | {"recvq": 0})
            elif key in self.groups:
                if SPREAD not in self.kinds:
                    out.append(r | {"peer": " ".join(self.groups[key][0])})
            else:
                out.append(r)
        resets = sum(is_reset(raw) for raw in sent)
        out += [{"state": "LISTEN", "recvq": n + resets, "sendq": limit, "local": local,
                 "peer": "all together"}
                for (local, limit), n in waiting.items()]
        return out

    @staticmethod
    def _without_ack_figures(row: Row) -> Row:
        words = [w for w in row.get("info", "").split() if not w.startswith(("segs_out:", "skmem:"))]
        return row | {"info": " ".join(words)} if "info" in row else row

    def finish(self, matcher: Matcher) -> list[Fault]:
        """Differences of what was left out of the one-by-one comparison."""
        faults: list[Fault] = []
        for group in dict.fromkeys(self.groups.values()):
            flows = [matcher.flow(k) for k in group]
            faults += self._permuted(flows) if ORDER in self.kinds else self._spread(flows)
        if ACKS in self.kinds:
            faults += self._ack_faults()
        return faults

    def _cut(self, flow: Flow) -> list[Emission]:
        """The packets of a flow without timers' packets that the kernel may have sent after the end."""
        kept = list(flow.got)
        while kept and kept[-1].trigger is None and may_fall_after(kept[-1].at, self.end, flow.events):
            kept.pop()
        return kept

    def _permuted(self, flows: list[Flow]) -> list[Fault]:
        def recorded(f: Flow) -> tuple[Any, ...]:
            return shapes([s.packet for s in f.expected]), [s.at for s in f.expected]

        want = sorted((recorded(f) for f in flows), key=repr)
        have = sorted(((shapes([e.raw for e in f.got]), [e.at for e in f.got]) for f in flows), key=repr)
        if [w[0] for w in want] != [h[0] for h in have]:
            have = sorted(((shapes([e.raw for e in kept]), [e.at for e in kept])
                           for kept in map(self._cut, flows)), key=repr)
        t = flows[0].expected[0].t if flows[0].expected else 0.0
        name = f"the {len(flows)} equally old 4-tuples from {flows[0].label}"
        if Counter(w[0] for w in want) != Counter(h[0] for h in have):
            return [(t, f"outcomes of {name}", _sizes(w[0] for w in want), _sizes(h[0] for h in have))]
        for (_, times), (_, mine) in zip(want, have, strict=True):
            for recorded_at, at in zip(times, mine, strict=True):
                late = lateness(0, at) + (len(times) - 1) * LATENCY
                if not at - EARLY <= recorded_at <= at + late:
                    return [(recorded_at / 1e9, f"time of a packet of {name}", f"{recorded_at / 1e9:.6f} s",
                             f"{at / 1e9:.6f} s")]
        return []

    def _spread(self, flows: list[Flow]) -> list[Fault]:
        allowed = {shapes([s.packet for s in f.expected]) for f in flows}
        for f in flows:
            mine = shapes([e.raw for e in f.got])
            if mine not in allowed and shapes([e.raw for e in self._cut(f)]) not in allowed:
                t = f.got[0].at / 1e9 if f.got else 0.0
                texts = "; ".join(wire.describe(e.raw) for e in f.got) or "nothing"
                return [(t, f"packets to {f.label}", "the outcome of some 4-tuple treated alike", texts)]
        return []

    def _ack_faults(self) -> list[Fault]:
        faults: list[Fault] = []
        recorded: dict[Key, list[PacketStep]] = defaultdict(list)
        for s in self.steps:
            if not s.injected and is_pure_ack(s.packet):
                recorded[key_of(s.packet, False)].append(s)
        for key in recorded.keys() | self.acks.keys():
            want = [_ack(s.packet) for s in recorded[key]]
            have = [_ack(e.raw) for e in self.acks[key]]
            name = f"pure ACKs to {' '.join(key)}"
            t = recorded[key][-1].t if recorded[key] else self.end / 1e9
            if not len(want) / 2 <= len(have) <= len(want) * 2:
                faults.append((t, f"number of {name}", f"about {len(want)}", str(len(have))))
            elif want and want[-1] != have[-1]:
                faults.append((t, f"last number of the {name}", str(want[-1]), str(have[-1])))
            elif any((b - a) & 0x80000000 for a, b in pairwise(have)):
                faults.append((t, f"order of the {name}", "growing numbers", str(have)))
        return faults


def _ack(raw: bytes) -> int:
    p = wire.parse(raw)
    return p.tcp.ack if p and p.tcp else 0


def _sizes(outcomes: Any) -> str:
    """How many 4-tuples sent how many packets, for a report."""
    count = Counter(len(o) for o in outcomes)
    return ", ".join(f"{n} with {size} packets" for size, n in sorted(count.items()))
