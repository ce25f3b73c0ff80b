"""The event loop: times, blocking calls, which failure is told, options, blocks of code, the command line.

Against the echo (tests/kit/echo.py), a stand-in that does what the script says; a script is made to fail
by running another text than the echo was made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.kit.echo import EchoStack
from ustack.cli.drill import drill
from ustack.drill import run
from ustack.drill.interp import CALL_TIME, Interpreter
from ustack.drill.options import Options
from ustack.drill.parse import parse_text
from ustack.drill.report import Outcome, Result
from ustack.drill.run import run_script

OPEN = """0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 bind(3, ..., ...) = 0
+0 listen(3, 1) = 0
+0 < S 0:0(0) win 1000 <mss 1000>
+0 > S. 0:0(0) ack 1 <mss 1460>
+.1 < . 1:1(0) ack 1 win 1000
+0 accept(3, ..., ...) = 4
"""


def outcome(text: str, echoed: str | None = None, stack: type[EchoStack] = EchoStack,
            **options: Any) -> Outcome:
    """Run `text` against an echo of `echoed` (default: of itself)."""
    made: list[EchoStack] = []

    def factory(settings: Options) -> EchoStack:
        made.append(stack(parse_text(echoed or text), settings))
        return made[0]

    def watch(interpreter: Interpreter) -> None:
        interpreter.on_event = made[0].begin

    return run_script(parse_text(text, "a.pkt"), None, options, factory,
                      watch=watch)  # type: ignore[arg-type]


def fails(text: str, echoed: str | None = None, **options: Any) -> Outcome:
    got = outcome(text, echoed, **options)
    assert got.result is Result.FAIL, got.text()
    return got


def passes(text: str, echoed: str | None = None, **options: Any) -> Outcome:
    got = outcome(text, echoed, **options)
    assert got.result is Result.PASS, got.text()
    return got


# --- time ----------------------------------------------------------------------------------------------


def test_the_whole_of_a_handshake() -> None:
    passes(OPEN)


@pytest.mark.parametrize(("said", "done", "ok"), [
    ("+.1", "+.1", True), ("+.1", "+.112", True), ("+.1", "+.113", False), ("+.1", "+.086", False),
    ("+.01", "+.0139", True), ("+.01", "+.0141", False), ("+.1~+.2", "+.15", True),
                                                  ("+.1~+.2", "+.211", True),
    ("+.1~+.2", "+.214", False), ("+.1~+.2", "+.08", False), ("*", "+1", True),
])
def test_tolerance_is_4_ms_or_an_eighth(said: str, done: str, ok: bool) -> None:
    tail = " > F. 1:1(0) ack 1"
    got = outcome(OPEN + "+0 close(4) = 0\n" + said + tail, OPEN + "+0 close(4) = 0\n" + done + tail)
    assert (got.result is Result.PASS) is ok, got.text()
    if not ok:
        assert got.reason == "the packet came at another time" and got.pos is not None and got.pos.line == 9


def test_tolerance_options() -> None:
    said, done = OPEN + "+.1 > F. 1:1(0) ack 1", OPEN + "+.13 > F. 1:1(0) ack 1"
    fails(said, done)
    passes("--tolerance_usecs=30000\n" + said, done)
    passes(said, done, tolerance_usecs=30000)
    passes(said, done, tolerance_percent=30.0)
    fails("--tolerance_usecs=30000\n" + said, done, tolerance_usecs=1000)


def test_a_packet_that_never_comes() -> None:
    got = fails(OPEN + "+.5 > F. 1:1(0) ack 1", OPEN)
    assert got.reason.startswith("no packet came until 2.6000") and got.got == "nothing"


def test_relative_inbound_packets_count_from_each_other() -> None:
    text = OPEN + "+.1 < . 1:11(10) ack 1 win 5\n+.1 < . 11:21(10) ack 1 win 5\n+.05 > . 1:1(0) ack 21"
    shift = 4 * CALL_TIME  # socket, bind, listen, accept
    arrivals = [r.at for r in passes(text).ladder if r.mark == "<"]
    assert arrivals[-2:] == [200_000_000 + shift, 300_000_000 + shift]


def test_an_absolute_time_in_the_past_fails() -> None:
    assert "another time" in fails(OPEN + "* > F. 1:1(0) ack 1\n.2 close(4) = 0",
                                   OPEN + "+.5 > F. 1:1(0) ack 1\n.6 close(4) = 0").reason


# --- calls ---------------------------------------------------------------------------------------------

BLOCK = OPEN.replace("+0 < S",
                     "+0...0.2 accept(3, ..., ...) = 4\n+.1 < S").replace("+0 accept(3, ..., ...) = 4\n", "")


def test_blocking_call_returns_when_said() -> None:
    passes(BLOCK)
    late = BLOCK.replace("0.2 accept", "0.25 accept")
    assert "returned at another time" in fails(BLOCK, late + "+.2 close(3) = 0").reason
    assert "returned at another time" in fails(late, BLOCK).reason


def test_a_call_waits_for_the_blocked_one() -> None:
    text = BLOCK.replace("+.1 < .", "+0 close(3) = 0\n+.1 < .")
    got = outcome(text)
    assert got.result is Result.PASS or "still blocked" in got.reason


def test_wrong_results() -> None:
    assert fails(OPEN + "+0 close(4) = 1",
                 OPEN + "+0 close(4) = 0").reason == "close() returned another value"
    got = fails(OPEN + "+0 write(4, ..., 9) = -1 EPIPE", OPEN + "+0 write(4, ..., 9) = -1 ECONNRESET")
    assert (got.reason, got.expected, got.got) == ("write() failed with another error", "-1 EPIPE",
                                                   "-1 ECONNRESET")
    passes(OPEN + "+0 write(4, ..., 9) = -1 EWOULDBLOCK", OPEN + "+0 write(4, ..., 9) = -1 EAGAIN")
    passes(OPEN + "+0 write(4, ..., 9) = -1", OPEN + "+0 write(4, ..., 9) = -1 EAGAIN")


def test_values_through_pointers_are_compared() -> None:
    for one, other in (
        ("getsockopt(4, SOL_SOCKET, SO_ERROR, [0], [4]) = 0",
         "getsockopt(4, SOL_SOCKET, SO_ERROR, [1], [4]) = 0"),
        ("ioctl(4, SIOCINQ, [5]) = 0", "ioctl(4, SIOCINQ, [6]) = 0"),
        ("poll([{fd=4, events=POLLIN, revents=POLLIN}], 1, 0) = 1",
         "poll([{fd=4, events=POLLIN|POLLOUT, revents=POLLOUT}], 1, 0) = 1"),
    ):
        passes(OPEN + "+0 " + one)
        fails(OPEN + "+0 " + one, OPEN + "+0 " + other)


def test_null_buffers() -> None:
    passes(OPEN + "+0 write(4, NULL, 10) = -1 EFAULT +0 read(4, 0, 10) = -1 EFAULT")
    fails(OPEN + "+0 write(4, NULL, 10) = 10")


@pytest.mark.parametrize(("line", "words"), [
    ("+0 close(7) = 0", "no open file descriptor 7"),
    ("+0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 4", "open already"),
    ("+0 listen(3) = 0", "takes 2 arguments"),
    ("+0 write(4, \"abc\", 3) = 3", "`...` or NULL"),
    ("+0 poll([{fd=4}], 1, 0) = 0", "needs events"),
    ("+0 poll([{fd=4, events=POLLIN}], 2, 0) = 0", "1 elements"),
    ("+0 writev(4, [{..., 5}], 2) = 5", "1 elements"),
    ("+0 setsockopt(4, SOL_SOCKET, SO_LINGER, {a=1}, 8) = 0", "no structure"),
    ("+0 epoll_wait(4, {events=0, ptr=0}, 1, 0) = 0", "not an epoll"),
])
def test_calls_that_make_no_sense(line: str, words: str) -> None:
    assert words in fails(OPEN + line).reason


# --- what cannot be run --------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "words"), [
    (OPEN + "+0 `launch rockets`", "unknown command: launch rockets"),
    (OPEN + "+0 pipe([5, 6]) = 0", "pipe() is not built"),
    ("--ip_version=ipv6\n" + OPEN, "only IPv4"),
    ("--udp_encapsulation=sctp,1,2\n" + OPEN, "not built"),
    (OPEN + "+0 < udp (10)", "UDP"),
    (OPEN + "+0 < icmp wonderful", "icmp wonderful"),
    ("0 socket(..., SOCK_DGRAM, IPPROTO_UDP) = 3", "only TCP"),
    (OPEN + "+0 fcntl(4, F_DUPFD, 9) = 9", "F_GETFL"),
])
def test_skipped_with_the_reason(text: str, words: str) -> None:
    got = outcome(text)
    assert got.result is Result.SKIPPED and words in got.reason, got.text()


@pytest.mark.parametrize(("text", "place", "words"), [
    (OPEN + "+0 setsockopt(4, SOL_TCP, TCP_WONDER, [1], 4) = 0", "8:27", "unknown symbol TCP_WONDER"),
    (OPEN + "+0 frob(4) = 0", "8:4", "unknown system call frob()"),
    (OPEN + "+0 close(4) = -1 EWONDER", "8:4", "unknown errno EWONDER"),
    ("--wonder=1\n" + OPEN, "1:1", "--wonder: no such option"),
    ("--mtu=big\n" + OPEN, "1:1", "--mtu"),
    ("--local_ip=1.2.3\n" + OPEN, "1:1", "not an IPv4 address"),
])
def test_mistakes_are_syntax(text: str, place: str, words: str) -> None:
    got = outcome(text)
    assert got.result is Result.SYNTAX and str(got.pos) == place and words in got.reason, got.text()


# --- commands, code, the end ---------------------------------------------------------------------------


def test_a_failing_command() -> None:
    assert fails(OPEN + "+0 `false`").reason == "the command failed with status 1"
    assert "status 255" in fails("`false; sysctl -n nothing.at.all`\n" + OPEN, stack=NoSysctls).reason


class NoSysctls(EchoStack):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sysctl = _Missing()


class _Missing(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise OSError(2, "No such file or directory")


def test_cleanup_runs_after_a_failure() -> None:
    seen: list[EchoStack] = []

    class Seen(EchoStack):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append(self)

    text = OPEN + "+0 `false`\n`sysctl -q net.ipv4.tcp_ecn=2`"
    assert outcome(text, stack=Seen).result is Result.FAIL
    assert seen[0].sysctl == {"net.ipv4.tcp_ecn": "2"}


def test_a_failing_cleanup_fails_but_hides_nothing() -> None:
    assert fails(OPEN + "`false`").reason == "the command failed with status 1"
    got = fails(OPEN + "+0 close(4) = 5\n`ip addr show`", OPEN + "+0 close(4) = 0\n`true`")
    assert got.reason == "close() returned another value"


def test_a_defect_is_a_failure_not_a_crash() -> None:
    class Broken(EchoStack):
        def inject(self, *args: Any, **more: Any) -> None:
            raise ZeroDivisionError("oops")

    got = outcome(OPEN, stack=Broken)
    assert got.result is Result.FAIL
    assert got.reason.startswith("internal error: ZeroDivisionError: oops (test_drill")


def test_code_runs_at_the_end_with_shared_names() -> None:
    first, second = "%{ before = tcpi_state; print('x') }%", "%{ assert before == 0; \\\n   print('y');\\\n}%"
    got = passes(OPEN + f"+0 {first}\n+0 {second}")
    assert got.printed == "x\ny\n"


def test_code_that_fails_does_so_at_the_end() -> None:
    got = fails(OPEN + "+0 %{ assert tcpi_state == TCP_CLOSE, tcpi_state }%\n+0 close(4) = 0")
    assert got.reason == "the assertion does not hold: got 0" and got.pos is not None and got.pos.line == 8
    assert "NameError" in fails(OPEN + "+0 %{ nothing_known }%").reason
    assert "SyntaxError" in fails(OPEN + "+0 %{ 1 + }%").reason
    assert fails(OPEN + "+0 %{ assert False }%\n+0 close(4) = 3",
                 OPEN + "+0 %{ 1 }%\n+0 close(4) = 0").reason \
        == "close() returned another value"


def test_code_without_an_open_socket() -> None:
    assert "no socket is open" in fails(OPEN + "+0 close(3) = 0\n+0 close(4) = 0\n+0 %{ 1 }%").reason


def test_strict_finds_a_surplus_packet() -> None:
    extra = OPEN + "+0 close(4) = 0\n+0 > F. 1:1(0) ack 1\n+.1 `true`"
    short = OPEN + "+0 close(4) = 0\n+.1 `true`"
    passes(short, extra)
    base = Options(strict=True)
    made = EchoStack(parse_text(extra), base)
    got = run_script(parse_text(short), base, {}, lambda o: made,  # type: ignore[arg-type,return-value]
                     watch=lambda i: setattr(i, "on_event", made.begin))
    assert got.result is Result.FAIL and "left over" in got.reason


def test_strict_segments() -> None:
    whole, cut = OPEN + "+0 > P. 1:3001(3000) ack 1", OPEN + (
        "+0 > . 1:1001(1000) ack 1\n+0 > . 1001:2001(1000) ack 1\n+0 > P. 2001:3001(1000) ack 1")
    passes(whole, cut)
    fails("--strict_segments\n" + whole, cut)
    fails(cut, whole)
    fails(whole, cut.replace("1001:2001(1000) ack 1", "1001:2001(1000) ack 2"))
    fails(OPEN + "+0 > P. 1:2501(2500) ack 1", cut)


def test_non_fatal() -> None:
    got = passes("--non_fatal=packet,syscall\n" + OPEN + "+0 close(4) = 1", OPEN + "+0 close(4) = 0")
    assert got.warnings == ["line 9: close() returned another value"]
    fails("--non_fatal=packet\n" + OPEN + "+0 close(4) = 1", OPEN + "+0 close(4) = 0")


def test_the_report_shows_how_it_came_to_it() -> None:
    text = fails(OPEN + "+0 > F. 1:1(0) ack 1", OPEN + "+0 > F. 1:1(0) ack 2").text()
    assert text.startswith("a.pkt:8:4: fail: the packet differs: acknowledgement number: expected 1, got 2")
    assert "script:   +0 > F. 1:1(0) ack 1" in text and "got:      F. 1:1(0) ack 2" in text
    assert "peer --> stack  S 0:0(0) win 1000 <mss 1000>  (line 4)" in text


# --- the command line ----------------------------------------------------------------------------------


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `ustack drill` on texts, each against an echo of itself."""
    def file_runner(path: str, *args: Any, **more: Any) -> Outcome:
        made: list[EchoStack] = []

        def factory(options: Options) -> EchoStack:
            made.append(EchoStack(parse_text(Path(path).read_text()), options))
            return made[0]

        return run.run_file(path, *args, **more, stack_factory=factory,  # type: ignore[arg-type]
                            watch=lambda i: setattr(i, "on_event", made[0].begin))

    monkeypatch.setattr("ustack.drill.many.run_file", file_runner)

    def invoke(texts: list[str], *args: str) -> Any:
        paths = []
        for number, text in enumerate(texts):
            paths.append(tmp_path / f"{number}.pkt")
            paths[-1].write_text(text)
        return CliRunner().invoke(drill, [*args, *map(str, paths)])

    return invoke


def test_exit_codes(cli: Any) -> None:
    failing, broken, skipped = OPEN + "+0 `false`", OPEN + "+0 ?", OPEN + "+0 `frob`"
    assert cli([OPEN]).exit_code == 0
    assert cli([failing]).exit_code == 1
    assert cli([broken]).exit_code == 2
    assert cli([skipped]).exit_code == 4
    assert cli([OPEN, skipped]).exit_code == 4
    assert cli([skipped, broken]).exit_code == 2
    assert cli([failing, broken, skipped]).exit_code == 1
    assert cli([]).exit_code == 2


def test_json_has_one_object_a_script(cli: Any) -> None:
    rows = [json.loads(line) for line in cli([OPEN, OPEN + "+0 `false`", OPEN + "+0 ?"],
                                             "-j").output.splitlines()]
    assert [r["result"] for r in rows] == ["pass", "fail", "syntax"]
    assert all(set(r) == {"path", "result", "reason"} for r in rows)
    assert rows[0]["reason"] == "" and rows[1]["reason"].startswith("8:4: the command failed")


def test_settings_defines_and_usage(cli: Any) -> None:
    assert cli([OPEN], "--tolerance_usecs", "5", "--strict_segments", "--mss=1000").exit_code == 0
    assert cli([OPEN], "--tolerance_usecs", "much").exit_code == 2
    assert cli([OPEN], "--ip_version=ipv6").exit_code == 4
    assert cli([OPEN.replace("listen(3, 1)", "listen(3, MANY)")], "-D", "MANY=1").exit_code == 0
    assert cli([OPEN], "--define", "what").exit_code == 2
    assert cli([OPEN], "--sysctl", "what").exit_code == 2
    assert cli([OPEN, OPEN], "--pcap", "x").exit_code == 2


def test_pcap(cli: Any, tmp_path: Path) -> None:
    assert cli([OPEN], "--pcap", str(tmp_path / "out.pcap")).exit_code == 0
    utils = pytest.importorskip("scapy.utils")
    packets = utils.rdpcap(str(tmp_path / "out.pcap"))
    assert [str(p["TCP"].flags) for p in packets] == ["S", "SA", "A"]


def test_verbose_shows_packets_of_a_pass(cli: Any) -> None:
    assert "peer <-- stack" in cli([OPEN], "-v").output


def test_a_script_that_needs_a_scheduler_is_skipped() -> None:
    text = "`tc qdisc replace dev tun0 root fq`\n0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n"
    outcome = run.run_script(parse_text(text))
    assert outcome.result == 4 and "qdisc" in outcome.reason and "root fq" in outcome.reason
    assert run.run_script(parse_text(text.replace("fq`", "fq; true`"))).result == 0
