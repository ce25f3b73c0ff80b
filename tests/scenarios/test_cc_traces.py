"""Congestion control ACK by ACK: TCP_INFO of a 6.18 kernel's sender (scenarios/congestion), recorded and live, against ustack's fed with the same
ACKs at the same times."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ustack.lab import run
from ustack.replay import Recording, load, parse, replay, replay_trace
from ustack.replay.driver import Run
from ustack.replay.target import build

TOP = Path(__file__).parents[2]
FOLDER = TOP / "scenarios" / "congestion"
RECORDING = TOP / "tests" / "data" / "congestion.json.gz"
# Of 19 traces each. A super-segment is sized by the pacing rate, which is measured: one on the edge may be cut differently. BBR's packets leave
# by the kernel's own timers, whose lateness nobody sees: one that crosses an ACK within it is cut differently.
MAY_DIFFER = {"cubic": 1, "reno": 1, "bbr": 2}
OPEN, DISORDER, CWR, RECOVERY, LOSS = range(5)


@pytest.fixture(scope="module")
def recorded() -> Recording:
    return load(RECORDING)


def test_the_recording_is_of_these_scenarios(recorded: Recording) -> None:
    assert [s.id for s in recorded.scenarios] == [s.id for s in run.load_all([FOLDER])]


@pytest.mark.parametrize("congestion", ["cubic", "reno", pytest.param("bbr", marks=pytest.mark.slow)])
def test_every_reading_equals_the_kernels(recorded: Recording, congestion: str) -> None:
    odd, exact, total, states = [], 0, 0, Counter[int]()
    for s in recorded.scenarios:
        if not s.id.startswith(f"cc-{congestion}-"):
            continue
        result, trace = replay_trace(recorded, s)
        if result.verdict != "pass":
            odd.append(result.reason)
        total += len(trace)
        exact += sum(step.fields[k] == have[k] for step, have in trace for k in ["snd_cwnd"])
        states.update(step.fields["ca_state"] for step, _ in trace)
    assert len(odd) <= (MAY_DIFFER[congestion] if congestion == "bbr" else 0), odd
    assert total > 2000 and states.keys() == {OPEN, DISORDER, CWR, RECOVERY, LOSS}
    assert exact == total if congestion != "bbr" else exact >= 0.99 * total


def test_the_traces_hold_what_they_are_named_after(recorded: Recording) -> None:
    total = {s.id.removeprefix("cc-cubic-"): s.counters_total for s in recorded.scenarios if s.id.startswith("cc-cubic-")}
    for name, counter in (("train", "TcpExtTCPHystartTrainDetect"), ("delay", "TcpExtTCPHystartDelayDetect"), ("loss", "TcpExtTCPSackRecovery"),
                          ("loss-nosack", "TcpExtTCPRenoRecovery"), ("lost-again", "TcpExtTCPLostRetransmit"), ("rto", "TcpExtTCPTimeouts"),
                          ("rto-spurious", "TcpExtTCPSpuriousRTOs"), ("reordered", "TcpExtTCPDSACKUndo")):
        assert total[name].get(counter), (name, counter)


def _raw() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress(RECORDING.read_bytes()))
    return data


def test_one_packet_of_window_more_is_found() -> None:
    """The comparison has teeth: one cwnd reading in the middle of a trace is changed by 1."""
    data = _raw()
    for name in ("cc-cubic-two-losses", "cc-reno-losses"):
        chosen = copy.deepcopy(next(s for s in data["scenarios"] if s["id"] == name))
        readings = [s for s in chosen["steps"] if "tcp_info" in s]
        readings[len(readings) // 2]["tcp_info"]["snd_cwnd"] += 1
        recording = parse({**data, "scenarios": [chosen]})
        assert "snd_cwnd" in replay(recording, recording.scenarios[0]).reason


def test_cubic_hangs_on_the_tick(recorded: Recording) -> None:
    """CUBIC's time is counted in ticks of 4 ms: with the phase half a tick off some trace differs, so the phase is used."""
    traces = [s for s in recorded.scenarios if s.id.startswith("cc-cubic-")]
    off = [dataclasses.replace(s, tick_at=((s.tick_at or 0.0) + 0.002) % 0.004) for s in traces]
    assert any(replay(recorded, s).verdict == "differs" for s in off)


@pytest.mark.parametrize("congestion", ["cubic", "reno"])
def test_paced_packets_leave_when_the_kernels_do(recorded: Recording, congestion: str) -> None:
    """SO_MAX_PACING_RATE: each packet's departure, to the lateness of the kernel's timers and of the recorder."""
    s = next(s for s in recorded.scenarios if s.id == f"cc-{congestion}-rate-limited")
    run_ = Run(s, build(recorded, s))
    assert run_.run().verdict == "pass"
    ours = [e.at for e in run_.sent if len(e.raw) > 1000]
    kernels = [p.at for p in s.packets() if not p.injected and len(p.packet) > 1000]
    assert abs(len(ours) - len(kernels)) <= 2       # the recording ends while the last are on their way
    off = sorted(abs(a - b) for a, b in zip(ours, kernels, strict=False))
    assert len(off) > 150 and off[len(off) // 2] < 500_000 and off[-1] < 4_000_000


def _live(*prefixes: str) -> list[str]:
    """What differs between this machine's kernel and ustack in the scenarios whose names begin so."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        pytest.skip("not root, or no /dev/net/tun")
    chosen = [s for s in run.load_all([FOLDER]) if s.id.startswith(prefixes)]
    odd = []
    for one in run.record_all(chosen, jobs=3):
        assert "error" not in one, one
        recording = parse(run.recording([one]))
        result = replay(recording, recording.scenarios[0])
        if result.verdict != "pass":
            odd.append(f"{result.reason} (recorder behind by {one['behind_ms']} ms, late by {one['disturbed_ms']} ms)")
    return odd


@pytest.mark.root
@pytest.mark.slow
def test_against_the_live_kernel_loss() -> None:
    assert not _live("cc-cubic-loss", "cc-reno-loss")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("congestion", ["cubic", "reno", "bbr"])
def test_against_the_live_kernel(congestion: str) -> None:
    assert len(_live(f"cc-{congestion}-")) <= MAY_DIFFER[congestion]
