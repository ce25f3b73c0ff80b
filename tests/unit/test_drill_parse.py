"""The script language: what parses into what, and where mistakes are said to be."""

from __future__ import annotations

import pytest

from ustack.drill import nodes
from ustack.drill.nodes import Direction, When
from ustack.drill.parse import ScriptSyntaxError, flags_text, parse_flags, parse_text
from ustack.drill.source import Source, parse_define

MS = 1_000_000
HEAD = "0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n"


def actions(text: str, **defines: str) -> list[nodes.Action]:
    return [event.action for event in parse_text(HEAD + text, defines=defines).events[1:]]


def packet(text: str, **defines: str) -> nodes.TcpPacket:
    (action,) = actions("+0 " + text, **defines)
    assert isinstance(action, nodes.TcpPacket)
    return action


def call(text: str) -> nodes.Syscall:
    (action,) = actions("+0 " + text)
    assert isinstance(action, nodes.Syscall)
    return action


def wrong(text: str) -> ScriptSyntaxError:
    with pytest.raises(ScriptSyntaxError) as caught:
        parse_text(text, "x.pkt")
    return caught.value


@pytest.mark.parametrize(("text", "when", "at", "end"), [
    ("1.5", When.ABSOLUTE, 1500, None),
    ("+.1", When.RELATIVE, 100, None),
    ("+0", When.RELATIVE, 0, None),
    ("*", When.ANY, 0, None),
    ("1.0~1.2", When.ABSOLUTE, 1000, 1200),
    ("+.1~+.2", When.RELATIVE, 100, 200),
    ("+.35~+2.35", When.RELATIVE, 350, 2350),
])
def test_times_of_an_outbound_packet(text: str, when: When, at: int, end: int | None) -> None:
    time = parse_text(f"{HEAD}{text} > . 1:1(0) ack 1").events[1].time
    assert (time.when, time.at, time.end) == (when, at * MS, None if end is None else end * MS)


def test_blocking_call_keeps_its_length() -> None:
    script = parse_text(HEAD + "0...0.2 accept(3, ..., ...) = 4\n+.002 ... 0.004 connect(3, ..., ...) = 0")
    one, two = (event.action for event in script.events[1:])
    assert isinstance(one, nodes.Syscall) and isinstance(two, nodes.Syscall)
    assert (one.lasts, two.lasts) == (200 * MS, 2 * MS)


@pytest.mark.parametrize(("word", "bits"), [
    (".", 0x10), ("-", 0), ("S", 2), ("S.", 0x12), ("P.", 0x18), ("FP.", 0x19), ("SEW", 0xC2), ("SE.", 0x52),
    ("R", 4), ("F.", 0x11), (".5", 0x150), ("P.2", 0x98), ("S.3", 0xD2), (".F", 0x11), ("SAEW", 0x1C2),
                                            ("U.", 0x30),
])
def test_flags(word: str, bits: int) -> None:
    assert parse_flags(word) == bits
    assert packet(f"< {word} 1:1(0) win 5").flags == bits
    assert parse_flags(flags_text(bits)) == bits


@pytest.mark.parametrize("word", ["SS", "..", "E.1"])
def test_flags_said_twice(word: str) -> None:
    assert wrong(f"{HEAD}+0 < {word} 1:1(0) win 5").pos.line == 2


def test_packet_with_everything() -> None:
    p = packet("< [ect0] 80 > 90 PU. 5:15(10) ack 7 win 100 urg 3 "
               "<mss 1460,nop,wscale 7,TS val 4294967295 ecr 2,sack 1:2 3:4>".replace("sack 1:2 3:4",
                                                                                      "sackOK"))
    assert p.direction is Direction.INBOUND and p.ip.ecn == "ect0" and p.ports == (80, 90)
    assert (p.start, p.end, p.length, p.ack, p.win, p.urg) == (5, 15, 10, 7, 100, 3)
    assert p.options is not None and [o.name for o in p.options] == ["mss", "nop", "wscale", "TS", "sackOK"]


def test_ip_fields() -> None:
    assert packet("> (tos 0xb8) . 1:1(0) ack 1").ip.tos == 0xB8
    assert packet("> [ttl 64] . 1:1(0) ack 1").ip.ttl == 64
    assert packet("> (ect01) . 1:1(0) ack 1").ip.ecn == "ect01"
    assert packet("> [noecn, ttl 3] . 1:1(0) ack 1").ip == nodes.IpInfo(ecn="noecn", ttl=3)


def test_options_of_every_kind() -> None:
    p = packet("> . 1:1(0) ack 1 <nop, nop, sack 1:2 3:4 5:6>")
    assert p.options is not None and p.options[2].blocks == ((1, 2), (3, 4), (5, 6))
    p = packet("> S 0:0(0) <mss 1460,FO abcd1234,nop,nop>")
    assert p.options is not None and p.options[1].data == bytes.fromhex("abcd1234")
    p = packet("> S 0:0(0) <FO 000000000000>")
    assert p.options is not None and p.options[0].data == bytes(6)
    p = packet("> S 0:0(0) <FO,nop,nop>")
    assert p.options is not None and p.options[0].data == b""
    p = packet("> S 0:0(0) <FOEXP>")
    assert p.options is not None and p.options[0].name == "FOEXP"
    p = packet("> . 1:1(0) ack 1 <ECN e1b 1 ceb 2 e0b 3,nop>")
    assert p.options is not None and p.options[0].counters == (("e1b", 1), ("ceb", 2), ("e0b", 3))
    p = packet("> . 1:1(0) ack 1 <md5 000102030405060708090a0b0c0d0e0f,nop,nop>")
    assert p.options is not None and len(p.options[0].data) == 16
    assert packet("> . 1:1(0) ack 1 <...>").options is None
    assert packet("> . 1:1(0) ack 1").options == ()


def test_icmp_and_udp_lines() -> None:
    one, two, three, four = actions(
        "+0 < icmp unreachable frag_needed mtu 640 [1:1001(1000)]\n+0 > icmp echo_reply id 7\n"
        "+0 < icmp type_255 code_0\n+0 < udp (100)")
    assert isinstance(one, nodes.IcmpPacket) and isinstance(two, nodes.IcmpPacket)
    assert (one.type, one.code, one.mtu, one.quoted) == ("unreachable", "frag_needed", 640, (1, 1000))
    assert (two.direction, two.ident, two.code) == (Direction.OUTBOUND, 7, None)
    assert isinstance(three, nodes.IcmpPacket) and (three.type, three.code) == ("type_255", "code_0")
    assert isinstance(four, nodes.UdpPacket) and four.length == 100


def test_call_arguments() -> None:
    c = call('setsockopt(3, SOL_TCP, TCP_X, [A | B|0x10], 4) = -1 EAGAIN (try (again) later)')
    assert c.name == "setsockopt" and c.errno == "EAGAIN" and isinstance(c.args[3], nodes.Array)
    either = c.args[3].items[0]
    assert isinstance(either, nodes.Or) and len(either.parts) == 3
    c = call('f("a\\x41\\n" "b"..., -5, NULL, {}) = 0x802 (flags O_RDWR|O_NONBLOCK)')
    text = c.args[0]
    assert isinstance(text, nodes.Text) and text.value == b"aA\nb" and text.prefix
    assert isinstance(c.args[1], nodes.Int) and c.args[1].value == -5
    assert isinstance(c.result, nodes.Int) and c.result.value == 0x802 and c.errno is None


def test_message_structure() -> None:
    c = call("recvmsg(4, {msg_name(...)=..., msg_iov(1)=[{...,0}], msg_flags=A|B,\n"
             "  msg_control=[{cmsg_level=L, cmsg_type=T, cmsg_data={scm_sec=0,scm_nsec=5}}]}, F) = 0")
    fields = c.args[1]
    assert isinstance(fields, nodes.Struct)
    assert [m.name for m in fields.members] == ["msg_name", "msg_iov", "msg_flags", "msg_control"]
    assert isinstance(fields.members[1].arg, nodes.Int)


def test_events_may_share_or_span_lines() -> None:
    script = parse_text(HEAD + "+0 close(3) = -1 +0 \n  < S 0:0(0)\n win 5 // tail\n /* a\n b */ +0 `true`")
    assert [type(e.action).__name__ for e in script.events] == ["Syscall", "Syscall", "TcpPacket", "Command"]
    assert script.events[2].pos == nodes.Pos(2, 18)


def test_option_lines_init_and_cleanup() -> None:
    script = parse_text('--mss=1000\n--strict_segments\n--define=A="x y"\n`one\ntwo`\n' + HEAD + "`three`")
    assert [(o.name, o.value) for o in script.options] == [
        ("mss", "1000"), ("strict_segments", None), ("define", 'A="x y"')]
    assert script.init is not None and script.init.text == "one\ntwo"
    assert script.cleanup is not None and script.cleanup.text == "three"


def test_code_is_stripped_and_kept() -> None:
    (code,) = actions("+0 %{\nassert a == 1, a # } %\nassert b\n}%")
    assert isinstance(code, nodes.Code) and code.text == "assert a == 1, a # } %\nassert b"


def test_defines_replace_whole_words_only() -> None:
    p = packet("> S 0:0(0) <FO COOKIE,nop,nop>", COOKIE="abcd1234")
    assert p.options is not None and p.options[0].data.hex() == "abcd1234"
    source = Source('A AA "A" `A` // A\nA', {"A": "xyz"})
    assert source.text == 'xyz AA "A" `A` // A\nxyz'
    assert source.place(source.text.index("AA")) == nodes.Pos(1, 3)
    assert source.place(source.text.rindex("xyz") + 2) == nodes.Pos(2, 1)


def test_predefined_cookie() -> None:
    p = packet("> S 0:0(0) <FO TFO_COOKIE,nop,nop>")
    assert p.options is not None and p.options[0].data.hex() == "3021b9d889017eeb"


def test_script_may_define_for_itself() -> None:
    script = parse_text("--define=PORTS=4\n" + HEAD + "+0 listen(3, PORTS) = 0")
    action = script.events[1].action
    assert isinstance(action, nodes.Syscall) and isinstance(action.args[1], nodes.Int)
    assert action.args[1].value == 4
    script = parse_text('--define=KEY="two words"\n--define=DO=`true`\n' + HEAD + "+0 f(KEY) = 0 +0 DO")
    call, command = script.events[1].action, script.events[2].action
    assert isinstance(call, nodes.Syscall) and isinstance(call.args[0], nodes.Text)
    assert call.args[0].value == b"two words"
    assert isinstance(command, nodes.Command) and command.text == "true"


@pytest.mark.parametrize("text", ["", "=1", "1=2", "novalue"])
def test_bad_define(text: str) -> None:
    with pytest.raises(ValueError):
        parse_define(text)


@pytest.mark.parametrize(("text", "place", "words"), [
    ("0 socket(..., A, B) = 3\n+0 ? x", "2:4", "unexpected"),
    ("0 socket(..., A, B) = 3\n+0 > S 0:5(4)", "2:8", "0 + 4 is 4, not 5"),
    ("0 socket(..., A, B) = 3\n+0 < S 0:0(0)", "2:6", "needs 'win N'"),
    ("0 socket(..., A, B) = 3\n+0 < S 0:0(0) win 70000", "2:19", "not within 0..65535"),
    ("0 socket(..., A, B) = 3\n+0 > S 0:0(0) <mss 1,nop>", "2:6", "multiple of 4"),
    ("0 socket(..., A, B) = 3\n+0 < . 1:1(0) win 4 <...>", "2:6", "no meaning"),
    ("0 socket(..., A, B) = 3\n* close(3) = 0", "2:1", "outbound packets only"),
    ("0 socket(..., A, B) = 3\n1~2 close(3) = 0", "2:1", "outbound packets only"),
    ("0 socket(..., A, B) = 3\n2~1 > . 1:1(0) ack 1", "2:1", "ends before it begins"),
    ("0 socket(..., A, B) = 3\n1...0.5 accept(3, ..., ...) = 4", "2:1", "ends before it begins"),
    ("0.1 socket(..., A, B) = 3", "1:1", "must be at time 0"),
    ("0 socket(..., A, B) = 3\n2 close(3) = 0\n1 close(4) = 0", "3:1", "goes backwards"),
    ("0 socket(..., A, B) = 3 oops", "1:25", "errno name"),
    ("0 socket(..., A, B = 3", "1:20", "unexpected"),
    ("0 socket(..., A, B) = 3\n+0 `never closed", "2:4", "unexpected"),
    ("0 socket(..., A, B) =", "1:22", "the end of the file"),
    ("0 f({a=1, 5=2}) = 0", "1:11", "member's name"),
    ('0 f("\\q") = 0', "1:5", "unknown escape"),
    ("", "1:1", "the end of the file"),
    ("--define=1=2\n0 f(...) = 0", "1:1", "NAME=value"),
])
def test_mistakes_and_their_places(text: str, place: str, words: str) -> None:
    error = wrong(text)
    assert str(error.pos) == place and words in error.message, str(error)


def test_mistake_after_a_replaced_word_points_at_the_original() -> None:
    with pytest.raises(ScriptSyntaxError) as caught:
        parse_text(HEAD + "+0 f(NAME, ?) = 0", defines={"NAME": "a_very_long_replacement"})
    assert caught.value.pos == nodes.Pos(2, 12)


@pytest.mark.parametrize("text", ["\v", "\f", "\x1c", "\u00a0"])
def test_white_space_that_the_language_does_not_know_is_named(text):
    with pytest.raises(ScriptSyntaxError, match="unexpected"):
        parse_text(text)
