"""The rules by which a replay compares: times, counters near late timers, tables, values, symbols, the
format."""

import json

import pytest
from click.testing import CliRunner

from tests.kit import recordings
from ustack.cli import main
from ustack.observe import ss, tcp_info
from ustack.replay import FormatError, load, packet, parse, values
from ustack.replay.counters import Counters
from ustack.replay.recording import CountersStep, PacketStep
from ustack.replay.symbols import Numbers, Ports, Unresolved, rewrite
from ustack.replay.table import info_fault, piped, remaining, table_fault
from ustack.replay.timing import MS, Events, immediate_fault, may_fall_after, timer_fault
from ustack.replay.varies import kinds

S = 1_000_000_000


def test_answer_must_come_at_once():
    assert immediate_fault(1 * S, 1 * S + 10 * MS) is None
    assert immediate_fault(1 * S, 1 * S + 40 * MS)
    assert immediate_fault(1 * S, 1 * S - 40 * MS)


@pytest.mark.parametrize("length, late, fits", [
    (1.0, 0.0, True), (1.0, 0.09, True), (1.0, 0.10, False), (1.0, -0.02, False),      # a slot of 32 ms
    (4.0, 0.31, True), (4.0, 0.33, False),                                              # a slot of 256 ms
    (32.0, 2.10, True), (32.0, 2.20, False),                                            # a slot of 2,048 ms
])
def test_timer_is_late_by_a_slot_of_the_kernels_wheel_and_60_ms_at_most(length, late, fits):
    assert (timer_fault(round(length * S), round((length + late) * S), Events([(0, 0)])) is None) == fits


def test_lateness_of_a_chain_adds_up():
    chain = Events([(0, 0), (1 * S, round(1.07 * S)), (3 * S, round(3.15 * S))])
    assert timer_fault(7 * S, round(7.40 * S), chain) is None
    assert timer_fault(7 * S, round(7.40 * S), Events([(0, 0)]))


def test_timer_near_the_end_may_fall_after_it():
    assert may_fall_after(7 * S, 7 * S + 350 * MS, Events([(0, 0)]))
    assert not may_fall_after(7 * S, 7 * S + 700 * MS, Events([(0, 0)]))


def mark(t, delta):
    return CountersStep(0, t, False, delta, "x")


def test_counter_of_a_late_timer_may_come_with_the_next_mark():
    now = {}
    counters = Counters(lambda: dict(now))
    before = counters.now()
    now["TcpRetransSegs"] = 1
    counters.fired(1 * S, before)
    assert counters.mark(mark(1.01, {})) == []
    assert counters.mark(mark(5.0, {"TcpRetransSegs": 1})) == []


def test_counter_missing_at_a_mark_beyond_doubt_is_told():
    now = {"TcpRetransSegs": 1}
    counters = Counters(lambda: {})
    assert counters.mark(mark(5.0, now)) == [("TcpRetransSegs", 1, 0)]


def test_only_the_late_timers_own_counters_are_in_doubt():
    now = {}
    counters = Counters(lambda: dict(now))
    before = counters.now()
    now["TcpRetransSegs"] = 1
    counters.fired(1 * S, before)
    now["TcpInSegs"] = 1
    assert counters.mark(mark(1.01, {})) == [("TcpInSegs", 0, 1)]


ROW = {"state": "SYN-RECV", "recvq": 0, "sendq": 0, "local": "192.0.2.1:80", "peer": "192.0.2.2:1000"}


def test_row_may_look_as_before_a_late_timer():
    assert table_fault([ROW], [], [], S)
    assert table_fault([ROW], [], [[ROW]], S) is None
    assert table_fault([], [ROW], [[ROW]], S)


def test_measured_words_are_left_out_and_the_others_not():
    want = "cubic rto:204 rtt:0.1/0.05 mss:1448 send 100bps app_limited"
    assert info_fault(want, "cubic rto:208 rtt:7/3 mss:1448 send 5bps lastsnd:4 app_limited", S) is None
    assert info_fault(want, "cubic rto:204 mss:1400 app_limited", S) == ("mss", "1448", "1400")
    assert info_fault(want, "cubic rto:204 mss:1448", S) == ("app_limited", "there", "not there")
    assert info_fault(want, "rto:204 cubic mss:1448 app_limited", S)[0] == "order of the words"


def test_timer_word():
    assert info_fault("timer:(on,3.840ms,3)", "timer:(on,3.800ms,3)", 4 * S) is None
    assert info_fault("timer:(on,3.840ms,3)", "timer:(on,3.800ms,2)", 4 * S)
    assert info_fault("timer:(on,3.840ms,3)", "timer:(on,2.800ms,3)", 4 * S)


@pytest.mark.parametrize("ms, text", [(3840, "3.840ms"), (6000, "6sec"), (960, "960ms"), (59500, "59sec"),
                                      (61000, "1min1sec"), (7199000, "119min"), (0, "")])
def test_remaining_time_as_ss_writes_it(ms, text):
    assert ss.ms_timer(ms) == text
    value, grain = remaining(text)
    assert abs(value - ms) < grain or value == ms


def test_pipes_behind_ss():
    rows = [ROW, ROW | {"state": "LISTEN"}]
    assert piped(rows, ["wc -l"]) == "2"
    assert piped(rows, ["grep -v LISTEN"]) == [ROW]


def test_ss_info_text_is_that_of_the_recording():
    """One connection was read by ss and, milliseconds later, by getsockopt: the text follows from the
    bytes."""
    s = recordings.scenario("J-sockinfo")
    text = next(x["rows"][0]["info"] for x in s["steps"] if x.get("ss", "").startswith("-tino"))
    raw = bytes.fromhex(next(x["result"]["hex"] for x in s["steps"]
                             if x.get("call") == "getsockopt" and x["args"]["name"] == "TCP_INFO"))
    assert len(raw) == tcp_info.SIZE
    words = ss.tcp_text(raw, "cubic").split()
    assert words == text.split()


def test_tcp_info_decodes_as_the_recording_says():
    s = recordings.scenario("J-sockinfo")
    fields = next(x["tcp_info"] for x in s["steps"] if "tcp_info" in x)
    raw = bytes.fromhex(next(x["result"]["hex"] for x in s["steps"]
                             if x.get("call") == "getsockopt" and x["args"]["name"] == "TCP_INFO"))
    assert tcp_info.decode(raw).items() >= fields.items()


DUMP = [
    {"kind": "sock", "state": 1, "laddr": "192.0.2.1", "lport": 80, "faddr": "192.0.2.2", "fport": 1000,
     "recvq": 3,
     "sendq": 0, "timer": None, "timer_expires_ns": 0, "retrans": 0},
    {"kind": "listen", "state": 10, "laddr": "0.0.0.0", "lport": 80, "faddr": "0.0.0.0", "fport": 0,
     "recvq": 1,
     "sendq": 5, "timer": None, "timer_expires_ns": 0, "retrans": 0},
    {"kind": "req", "state": 3, "laddr": "192.0.2.1", "lport": 80, "faddr": "192.0.2.2", "fport": 1001,
     "recvq": 0,
     "sendq": 0, "timer": "on", "timer_expires_ns": 1 * S, "retrans": 1},
]


@pytest.mark.parametrize("args, states", [
    ("-tan", ["LISTEN", "ESTAB", "SYN-RECV"]), ("-tln", ["LISTEN"]), ("-tn", ["ESTAB"]),
    ("-tan state syn-recv", ["SYN-RECV"]), ("-tan dport = :1000", ["ESTAB"]), ("-tan sport != :80", []),
    ("-tn state all dport ge 1001", ["SYN-RECV"]), ("-tan dst 192.0.2.2", ["ESTAB", "SYN-RECV"]),
])
def test_ss_filters(args, states):
    assert [r["state"] for r in ss.rows(DUMP, args)] == states


def test_ss_rows():
    listen, _, request = ss.rows(DUMP, "-tano")
    assert listen == {"state": "LISTEN", "recvq": 1, "sendq": 5, "local": "0.0.0.0:80", "peer": "0.0.0.0:*"}
    assert request["info"] == "timer:(on,1sec,1)"
    assert ss.text(DUMP, "-Htln") == "LISTEN 1      5      0.0.0.0:80 0.0.0.0:*\n"
    with pytest.raises(ss.UsageError):
        ss.rows(DUMP, "-tan state nonsense")


@pytest.mark.parametrize("form, data", [
    ({"len": 3, "hex": "616263"}, b"abc"), ({"len": 4, "repeat": "78"}, b"xxxx"),
    ({"len": 3, "runs": [["77", 2], ["78", 1]]}, b"wwx"), ({"len": 0}, b""),
])
def test_payload_forms(form, data):
    assert values.payload(form) == data
    assert values.payload_fault(form, data) is None
    assert values.payload_fault(form, data + b"!")


def test_payload_known_by_its_hash():
    import hashlib
    form = {"len": 3, "first": "61", "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert values.payload_fault(form, b"abc") is None
    assert values.payload_fault(form, b"abd")


@pytest.mark.parametrize("value", [1, -1, {"onoff": 1, "linger": 5}, {"sec": 1, "usec": 2}, {"hex": "0102"}])
def test_option_values_there_and_back(value):
    raw = values.option_in(value)
    if isinstance(raw, int):
        raw = raw.to_bytes(4, "little", signed=True)
    assert values.option_out(raw, value) == value


def third_ack():
    s = recordings.scenario("B-isn")
    step = next(x for x in recordings.scenario("A1-fill-b0-ck0")["steps"] if x.get("sym", {}).get("ack"))
    assert s
    return PacketStep(0, step["t"], False, step["p"], True, bytes.fromhex(step["hex"]), step["sym"], "")


def test_rewriting_needs_the_packet_it_refers_to():
    with pytest.raises(Unresolved):
        rewrite(third_ack(), Numbers(), Ports())


@pytest.mark.parametrize("spoil", [0, 0x1234])
def test_rewriting_corrects_checksums_or_keeps_them_as_wrong(spoil):
    step = third_ack()
    raw = bytearray(step.packet)
    raw[36] ^= spoil >> 8
    raw[37] ^= spoil & 0xFF
    step = PacketStep(0, step.t, False, step.p, True, bytes(raw), step.sym, "")
    synack = next(x for x in recordings.scenario("A1-fill-b0-ck0")["steps"]
                  if x.get("p") == step.sym["ack"][1])
    other = bytearray.fromhex(synack["hex"])
    other[24:28] = b"\xff\xff\xff\xff"
    numbers = Numbers()
    numbers.emitted(step.sym["ack"][1], 0, packet.parse(bytes(other)))
    made = packet.parse(rewrite(step, numbers, Ports()))
    assert made.tcp.ack == 0
    right = packet.tcp_checksum(made.header, made.data[:16] + b"\0\0" + made.data[18:])
    assert made.tcp.cksum == right ^ spoil


def test_ports_chosen_by_the_stack():
    step = third_ack()
    ports = Ports()
    ports.learn(8000, 40000)
    there = packet.parse(ports.to_stack(step.packet))
    assert there.tcp.dport == 40000 and packet.checksum_faults(there) == []
    assert ports.recorded_text("0.0.0.0:40000") == "0.0.0.0:8000"


def test_kinds_of_variation():
    assert kinds(None) == frozenset()
    assert kinds("the weather") == frozenset()
    for s in recordings.raw()["scenarios"]:
        assert kinds(s.get("varies")) or not s.get("varies"), s["id"]


GOOD = {"scenarios": [{"id": "x", "steps": [{"t": 0.1, "note": "n"}]}]}


@pytest.mark.parametrize("data, where", [
    ([], "top level"), ({}, "scenarios"), ({"scenarios": [{}]}, "scenarios[0]"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1}]}]}, "steps[0]"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1, "dir": "<", "p": 0, "hex": "4x"}]}]}, "hexadecimal"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1, "dir": "?", "p": 0, "hex": "45"}]}]}, "dir"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1, "note": "a"}, {"t": 0.5, "note": "b"}]}]}, "before"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1, "call": "close"}]}]}, "result"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1, "ss": "-tan", "rows": [{"state": "ESTAB"}]}]}]},
     "rows[0]"),
    ({"scenarios": [{"id": "x", "steps": [{"t": 1, "counters": {"a": "1"}}]}]}, "counter a"),
])
def test_what_is_not_in_the_format_is_named(data, where):
    with pytest.raises(FormatError, match=where.replace("[", r"\[").replace("]", r"\]")):
        parse(data)


def test_format_accepts_plain_and_compressed_files(tmp_path):
    import gzip
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert load(tmp_path / "a.json").scenarios[0].id == load(tmp_path / "a.json.gz").scenarios[0].id == "x"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x1f\x8bnonsense", b'{"scenarios": 3}'])
def test_command_refuses_a_file_that_is_no_recording(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    run = CliRunner().invoke(main, ["diff", "--replay", str(file)])
    assert run.exit_code == 2
    assert "a.json" in run.output


def test_command_says_when_no_scenario_is_chosen(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(GOOD))
    run = CliRunner().invoke(main, ["diff", "--replay", str(file), "--only", "nothing*"])
    assert run.exit_code == 2 and "no scenario" in run.output


def test_command_refuses_a_missing_file(tmp_path):
    assert CliRunner().invoke(main, ["diff", "--replay", str(tmp_path / "none")]).exit_code == 2
