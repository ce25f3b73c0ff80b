"""Changes of a recording, one thing at a time, each of which a replay on the unchanged stack must notice.

A mutator takes a copy of a scenario (decoded JSON) and a random source, changes one thing and says what;
None if the scenario has nothing of that sort. Changes that the rules of comparison allow are not made: what
`varies` frees, what was measured, what a late timer explains near the end.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from ustack.replay import packet as wire
from ustack.replay.counters import LEFT_OUT
from ustack.replay.table import MEASURED_FIELDS, MEASURED_WORDS, words

Scenario = dict[str, Any]
Mutator = Callable[[Scenario, random.Random], str | None]
MUTATORS: dict[str, Mutator] = {}


def mutator(f: Mutator) -> Mutator:
    MUTATORS[f.__name__] = f
    return f


def mutate(kind: str, scenario: Scenario, rng: random.Random) -> tuple[Scenario, str] | None:
    changed = copy.deepcopy(scenario)
    what = MUTATORS[kind](changed, rng)
    return None if what is None else (changed, what)


def _emitted(s: Scenario) -> list[dict[str, Any]]:
    return [x for x in s["steps"] if x.get("dir") == "<"]


def _tcp_emitted(s: Scenario) -> list[dict[str, Any]]:
    return [x for x in _emitted(s) if (p := wire.parse(bytes.fromhex(x["hex"]))) and p.tcp]


def _change_byte(step: dict[str, Any], at: int, value: int) -> str:
    raw = bytearray.fromhex(step["hex"])
    old = raw[at]
    raw[at] = value & 0xFF
    step["hex"] = raw.hex()
    return f"p{step['p']}: byte {at} {old:02x} -> {raw[at]:02x}"


def _parsed(step: dict[str, Any]) -> wire.Packet:
    p = wire.parse(bytes.fromhex(step["hex"]))
    assert p is not None
    return p


def _pick(rng: random.Random, items: list[Any]) -> Any:
    return rng.choice(items) if items else None


@mutator
def flag(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _tcp_emitted(s))
    if step is None:
        return None
    p = _parsed(step)
    at = len(p.header) + 13
    return _change_byte(step, at, p.raw[at] ^ rng.choice([0x01, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80]))


@mutator
def option(s: Scenario, rng: random.Random) -> str | None:
    places = []
    for step in _tcp_emitted(s):
        p = _parsed(step)
        assert p.tcp
        ts = p.tcp.ts_offset
        hidden = range(0) if ts is None else range(ts, ts + 4)
        places += [(step, len(p.header) + 20 + i) for i in range(len(p.tcp.options)) if i not in hidden]
    if not places:
        return None
    step, at = rng.choice(places)
    return _change_byte(step, at, _parsed(step).raw[at] ^ (1 << rng.randrange(8)))


@mutator
def window(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _tcp_emitted(s))
    if step is None:
        return None
    p = _parsed(step)
    at = len(p.header) + 14 + rng.randrange(2)
    return _change_byte(step, at, p.raw[at] ^ (1 << rng.randrange(8)))


@mutator
def acknowledgement(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _tcp_emitted(s))
    if step is None:
        return None
    p = _parsed(step)
    at = len(p.header) + 8 + rng.randrange(4)
    return _change_byte(step, at, p.raw[at] ^ (1 << rng.randrange(8)))


@mutator
def relative_sequence(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _tcp_emitted(s) if isinstance(x.get("sym", {}).get("seq"), list)
                       and x["sym"]["seq"][0] == "isn"])
    if step is None:
        return None
    step["sym"]["seq"][2] += rng.choice([-1, 1, 1460])
    return f"p{step['p']}: sequence number {step['sym']['seq']}"


@mutator
def ip_header(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _emitted(s))
    if step is None:
        return None
    at = rng.choice([1, 6, 8])
    return _change_byte(step, at, _parsed(step).raw[at] ^ (0x40 if at == 6 else 0x08))


@mutator
def ident(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _emitted(s))
    if step is None:
        return None
    raw = bytearray.fromhex(step["hex"])
    raw[4:6] = b"\0\0" if any(raw[4:6]) else b"\x12\x34"
    step["hex"] = raw.hex()
    return f"p{step['p']}: IP ID {raw[4:6].hex()}"


@mutator
def payload(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _tcp_emitted(s) if (t := _parsed(x).tcp) and t.payload])
    if step is None:
        return None
    p = _parsed(step)
    assert p.tcp
    at = len(p.header) + 20 + len(p.tcp.options) + rng.randrange(len(p.tcp.payload))
    return _change_byte(step, at, p.raw[at] ^ 0x80)


@mutator
def icmp(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _emitted(s) if (i := _parsed(x).icmp) and i.type != 14])
    if step is None:
        return None
    p = _parsed(step)
    at = len(p.header) + rng.choice([0, 1, *range(4, len(p.data))])
    return _change_byte(step, at, p.raw[at] ^ 0x10)


def _move(s: Scenario, step: dict[str, Any], t: float) -> str:
    was = step["t"]
    step["t"] = round(t, 6)
    timed = [x for x in s["steps"] if not x.get("setup")]
    s["steps"] = [x for x in s["steps"] if x.get("setup")] + sorted(timed, key=lambda x: x["t"])
    s["t_end"] = max(s["t_end"], step["t"])
    return f"p{step['p']}: time {was} -> {step['t']}"


@mutator
def later(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _emitted(s))
    return None if step is None else _move(s, step, step["t"] * 1.05 + 0.4)


@mutator
def a_little_later(s: Scenario, rng: random.Random) -> str | None:
    """An answer after 40 ms, as if a delayed ACK."""
    answers, cause = [], -1.0
    for x in s["steps"]:
        if x.get("dir") == ">" or "call" in x:
            cause = x["t"]
        elif x.get("dir") == "<" and x["t"] - cause < 0.005:
            answers.append(x)
    step = _pick(rng, answers)
    return None if step is None else _move(s, step, step["t"] + 0.04)


@mutator
def earlier(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _emitted(s) if x["t"] > 0.5])
    return None if step is None else _move(s, step, step["t"] * 0.95 - 0.1)


@mutator
def removed_packet(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _emitted(s) if x["t"] * 1.05 + 0.3 < s["t_end"]])
    if step is None:
        return None
    s["steps"].remove(step)
    return f"p{step['p']} removed"


@mutator
def added_packet(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _emitted(s))
    if step is None:
        return None
    twin = copy.deepcopy(step)
    twin["p"] = 1_000_000
    s["steps"].insert(s["steps"].index(step) + 1, twin)
    return f"p{step['p']} doubled"


def _calls(s: Scenario) -> list[dict[str, Any]]:
    return [x for x in s["steps"] if "call" in x]


@mutator
def result(s: Scenario, rng: random.Random) -> str | None:
    places = []
    for x in _calls(s):
        r = x["result"]
        if x.get("errno") or r == "fd" or x["call"] in ("getsockname", "setblocking"):
            continue
        if isinstance(r, int):
            places.append((x, r + 1))
        elif isinstance(r, dict) and "peer" in r:
            places.append((x, {"peer": "192.0.2.77:1"}))
        elif isinstance(r, dict) and isinstance(r.get("value"), int):
            places.append((x, r | {"value": r["value"] + 1}))
        elif isinstance(r, dict) and x["call"] == "recv" and "hex" in r:
            places.append((x, {"len": r["len"] + 1, "hex": r["hex"] + "00"}))
        elif isinstance(r, list):
            places.append((x, [] if r else [{"sock": x["args"]["fds"][0]["sock"], "revents": ["IN"]}]))
    if not places:
        return None
    step, value = rng.choice(places)
    was, step["result"] = step["result"], value
    return f"{step['call']}: result {was} -> {value}"


@mutator
def error(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _calls(s) if x["call"] not in ("socket", "setblocking")])
    if step is None:
        return None
    was = step.get("errno")
    step["errno"] = "EPERM"
    step["result"] = -1
    return f"{step['call']}: errno {was} -> EPERM"


@mutator
def success(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _calls(s) if x.get("errno")])
    if step is None:
        return None
    was = step.pop("errno")
    step["result"] = {"peer": "192.0.2.2:1"} if step["call"] == "accept" else 0
    return f"{step['call']}: {was} -> success"


@mutator
def readback(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _calls(s) if "readback" in x])
    if step is None:
        return None
    value = step["readback"]
    if isinstance(value, int):
        step["readback"] = value + 1
    else:
        key = rng.choice(sorted(k for k in value if isinstance(value[k], int)))
        value[key] += 1
    return f"readback -> {step['readback']}"


@mutator
def return_time(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in _calls(s) if "t_end" in x])
    if step is None:
        return None
    was = step["t_end"]
    step["t_end"] = round(was * 1.05 + 0.3, 6)
    s["t_end"] = max(s["t_end"], step["t_end"])
    return f"{step['call']}: return {was} -> {step['t_end']}"


@mutator
def counter(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in s["steps"] if "counters" in x])
    if step is None:
        return None
    name = rng.choice([*step["counters"], "TcpExtListenDrops", "TcpExtTCPChallengeACK", "TcpInErrs"])
    if name in LEFT_OUT:
        return None
    step["counters"][name] = step["counters"].get(name, 0) + rng.choice([-1, 1])
    return f"counter {name} -> {step['counters'][name]}"


@mutator
def lost_counter(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in s["steps"] if x.get("counters")])
    if step is None:
        return None
    name = rng.choice(sorted(step["counters"]))
    del step["counters"][name]
    return f"counter {name} left out"


def _tables(s: Scenario) -> list[dict[str, Any]]:
    return [x for x in s["steps"] if x.get("rows") and "raw" not in x["rows"][0]]


@mutator
def table_figure(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _tables(s))
    if step is None:
        return None
    row = rng.choice(step["rows"])
    key = rng.choice(["recvq", "sendq"])
    row[key] += 1
    return f"ss: {row['local']} {row['peer']} {key} {row[key]}"


@mutator
def table_state(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _tables(s))
    if step is None:
        return None
    row = rng.choice(step["rows"])
    row["state"] = "CLOSING" if row["state"] != "CLOSING" else "ESTAB"
    return f"ss: {row['local']} {row['peer']} {row['state']}"


@mutator
def table_row(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, _tables(s))
    if step is None:
        return None
    if rng.random() < 0.5:
        row = step["rows"].pop(rng.randrange(len(step["rows"])))
        return f"ss: row {row['local']} {row['peer']} removed"
    row = dict(rng.choice(step["rows"]))
    step["rows"].append(row)
    return f"ss: row {row['local']} {row['peer']} doubled"


@mutator
def table_word(s: Scenario, rng: random.Random) -> str | None:
    rows = [r for x in _tables(s) for r in x["rows"] if r.get("info")]
    row = _pick(rng, rows)
    if row is None:
        return None
    known = [(k, v) for k, v in words(row["info"]) if k not in MEASURED_WORDS]
    if not known:
        return None
    key, value = rng.choice(known)
    text = f"{key}:{value}" if value else key
    other = f"{key}:{value}9" if value and key not in ("timer", "skmem") else ""
    row["info"] = " ".join(row["info"].replace(text, other, 1).split())
    return f"ss: {text!r} -> {other!r}"


@mutator
def tcp_info_field(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in s["steps"] if "tcp_info" in x])
    if step is None:
        return None
    name = rng.choice(sorted(set(step["tcp_info"]) - MEASURED_FIELDS - {"rto_us"}))
    step["tcp_info"][name] += 1
    return f"tcp_info {name} -> {step['tcp_info'][name]}"


@mutator
def sysctl_refused(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in s["steps"] if "sysctl" in x and not x.get("setup")])
    if step is None:
        return None
    if "errno" in step:
        del step["errno"]
    else:
        step["errno"] = "EINVAL"
    return f"sysctl {step['sysctl']}: errno {step.get('errno')}"


@mutator
def sysctl_value(s: Scenario, rng: random.Random) -> str | None:
    step = _pick(rng, [x for x in s["steps"] if "sysctl_get" in x])
    if step is None:
        return None
    step["value"] += "0"
    return f"sysctl {step['sysctl_get']} reads {step['value']}"
