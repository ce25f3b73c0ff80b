"""The bytes of `ustack ss` against those of iproute2's ss over the kernel's sockets in the same states.

tests/data/ss.json.gz is `ustack diff --record` of scenarios/l_ss.toml on a 6.18 kernel with iproute2 6.1: sockets in some fifty states, and one
table with all of them read through a hundred command lines. tests/data/ss_terminal.json holds what ss wrote on terminals of several widths.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ustack.cli import main
from ustack.observe import ss
from ustack.replay import parse, replay
from ustack.replay.table import masked, text_fault

TOP = Path(__file__).parents[2]
DATA = TOP / "tests" / "data"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress((DATA / "ss.json.gz").read_bytes()))
    return data


def texts(recorded: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for scenario in recorded["scenarios"]:
        for step in scenario["steps"]:
            if "ss_text" in step:
                yield step["ss_text"], step["text"]


def test_every_recorded_table_is_printed_alike(recorded: dict[str, Any]) -> None:
    recording = parse(recorded)
    odd = [r.reason for r in (replay(recording, s) for s in recording.scenarios) if r.verdict != "pass"]
    assert not odd
    names = {s.id for s in recording.scenarios}
    assert len(names) > 50 and sum(1 for _ in texts(recorded)) > 500
    states = {m for _, text in texts(recorded) for m in re.findall(r"^(?:tcp +)?([A-Z][A-Z0-9-]+) ", text, re.M)}
    assert states >= {"LISTEN", "SYN-RECV", "SYN-SENT", "ESTAB", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "LAST-ACK", "CLOSING", "TIME-WAIT"}


def test_one_changed_figure_is_seen(recorded: dict[str, Any]) -> None:
    """What is compared: each of these changes to the kernel's text, and no other, makes the scenario differ."""
    scenario = next(s for s in recorded["scenarios"] if s["id"] == "L-ss-sacked")
    changes = [("ESTAB  0      14480", "ESTAB  1      14480"), ("sacked:4", "sacked:5"), ("cwnd:7", "cwnd:8"),
               ("w17808", "w17809"), ("rb131072", "rb131073"),
               ("segs_in:3", "segs_in:4"), ("retrans:2/3", "retrans:2/4"),
               ("timer:(on", "timer:(keepalive"), ("<->", "-->"), (" ts sack", " ts"), ("State  ", "State ")]
    for old, new in changes:
        changed = copy.deepcopy(scenario)
        hits = 0
        for step in changed["steps"]:
            if old in step.get("text", ""):
                step["text"] = step["text"].replace(old, new)
                hits += 1
        recording = parse({**recorded, "scenarios": [changed]})
        assert hits and replay(recording, recording.scenarios[0]).verdict == "differs", old


def cells(text: str, netid: bool, state: bool, header: bool) -> list[list[str]]:
    """The cells that a text of ss was made of (ss pads, it never cuts)."""
    rows: list[list[str]] = []
    for line in text.splitlines()[1 if header else 0:]:
        if line.startswith("\t"):
            rows[-1][8] += "\n" + line
            continue
        words = line.split(None, 3 + netid + state)
        kind = words.pop(0) if netid else "tcp"
        shown = words.pop(0) if state else "?"
        recvq, sendq, local, rest = words
        peer, _, more = rest.partition(" ")
        places = [part for end in (local, peer) for part in (end.rpartition(":")[0] + ":", end.rpartition(":")[2])]
        rows.append([kind, shown, f"{recvq:<6}", f"{sendq:<6}", *places, more.strip() and " " + more.strip()])
    return [[*row[:8], row[8].rstrip(" ")] for row in rows]


def test_columns_and_padding_byte_for_byte(recorded: dict[str, Any]) -> None:
    """Nothing masked: the kernel's rows, laid out again, are the kernel's text."""
    for args, text in texts(recorded):
        query = ss.parse(args)
        rows = cells(text, query.shows_netid, query.shows_state, "H" not in query.flags)
        assert ss.print_cells(rows, query) == text, args


@pytest.mark.parametrize("case", json.loads((DATA / "ss_terminal.json").read_text()), ids=lambda c: f"{c['args']}@{c['width']}")
def test_columns_on_a_terminal(case: dict[str, Any]) -> None:
    query = ss.parse(case["args"])
    rows = cells(case["text"], query.shows_netid, query.shows_state, "H" not in query.flags)
    assert ss.print_cells(rows, query, case["width"]) == case["text"]


def test_what_is_masked() -> None:
    line = ("ESTAB 0 0 192.0.2.1:80 192.0.2.2:5 timer:(on,204ms,1) ino:7 sk:2c cgroup:/a rto:204 rtt:1/2 send 5bps lastsnd:4 busy:20ms unacked:1\n")
    assert masked(line) == ["ESTAB 0 0 192.0.2.1:80 192.0.2.2:5 timer:(on,*,1) ino:* sk:* cgroup:* rto:* rtt:* send * lastsnd:* busy:* unacked:1"]
    assert text_fault(line, line.replace("rtt:1/2", "rtt:9/9")) is None
    assert text_fault(line, line.replace("unacked:1", "unacked:2")) is not None
    assert text_fault(line, line.replace("ino:7", "ino:0")) is not None, "whether a program holds it is no measurement"


@pytest.mark.parametrize("args, said", [
    ("-tn state nonsense", "wrong state name: nonsense"), ("-tn sport", "syntax error"), ("-tn src != :80", "syntax error"),
    ("-tn ( sport = :80", "syntax error"), ("-tn sport = :80 )", "syntax error"), ("-tn sport = :nosuch", "does not look like a port"),
    ("-tn sport = 9.9.9.9:80", "does not look like a port"), ("-tn dst foo", "an inet prefix is expected"), ("-tn foo", "an inet prefix is expected"),
    ("-tn 192.0.2.1", "syntax error"), ("-tq", "invalid option -- 'q'"), ("--nonsense", "unrecognized option"), ("-f nonsense", "invalid family"),
    ("-A nonsense", "illegal socket table"), ("-tn state", "needs the name"), ("-tn dst 300.1.1.1", "an inet prefix is expected"),
])
def test_words_that_ss_does_not_know(args: str, said: str) -> None:
    with pytest.raises(ss.UsageError, match=re.escape(said)):
        ss.parse(args)
    result = CliRunner().invoke(main, ["ss", *args.split()])
    assert result.exit_code == 2 and said in result.output


@pytest.mark.root
def test_against_the_live_kernel(tmp_path: Path) -> None:
    """The states whose making takes no second, against the ss and the kernel of this machine."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        pytest.skip("not root, or no /dev/net/tun")
    quick = ["listen*", "accept-queue", "overflow", "syn-recv", "syn-sent", "established*", "active", "unread", "half-read", "unacked", "unsent",
             "sacked", "probe-soon", "keepalive", "out-of-order", "corked", "buffers", "close-wait*", "last-ack", "last-ack-data",
             "fin-wait-1*", "fin-wait-2*",
             "closing*", "time-wait", "fast-open", "all"]
    if "iproute2-6.1" not in os.popen("ss -V").read():
        pytest.skip("the ss of this machine is not of iproute2 6.1, whose words and columns are compared")
    wanted = [f"L-ss-{q}" for q in quick]
    for _ in range(3):      # on a busy machine two steps may fall on different sides of a tick of the kernel's: those once more
        words = [w for name in wanted for w in ("--only", name)]
        result = CliRunner().invoke(main, ["diff", str(TOP / "scenarios" / "l_ss.toml"), *words])
        wanted = re.findall(r"^differs +([\w-]+):", result.output, re.M)
        if result.exit_code == 0:
            return
    pytest.fail(result.output)
