"""Packets of scripts: bytes against scapy, translation of numbers, and how strictly they are compared."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from ustack.drill import codec, nodes
from ustack.drill.options import Options
from ustack.drill.packets import (
    Difference,
    Flow,
    FlowState,
    Part,
    build_icmp,
    build_tcp,
    compare_icmp,
    compare_tcp,
    continues,
    is_ours,
    live_text,
    script_text,
)
from ustack.drill.parse import parse_text

scapy = pytest.importorskip("scapy.layers.inet")
OPTIONS = Options()
US, PEER = ("192.168.0.1", 8080), ("192.0.2.1", 4444)


def flow(**more: object) -> Flow:
    made = Flow(FlowState.PASSIVE_ANSWERED, US, PEER, 0, 0, 0xFFFFFFF0, 1000)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def line(text: str) -> nodes.TcpPacket:
    action = parse_text("0 f() = 0\n+0 " + text).events[1].action
    assert isinstance(action, nodes.TcpPacket)
    return action


def icmp_line(text: str) -> nodes.IcmpPacket:
    action = parse_text("0 f() = 0\n+0 " + text).events[1].action
    assert isinstance(action, nodes.IcmpPacket)
    return action


def emitted(text: str, of: Flow, ttl: int = 64, tos: int = 0, **more: int) -> codec.Packet:
    """A live packet that says exactly `text` (an outbound line) on the flow."""
    p = line(text)
    syn = bool(p.flags & codec.SYN)
    options = [replace(o, blocks=tuple((a + of.remote_offset(syn) & 0xFFFFFFFF,
                                        b + of.remote_offset(syn) & 0xFFFFFFFF)
                                       for a, b in o.blocks)) for o in p.options or ()]
    ack = ((p.ack or 0) + of.remote_offset(syn)) if p.flags & codec.ACK else 0
    segment = codec.tcp(codec.address(US[0]), codec.address(PEER[0]), US[1], PEER[1],
                        p.start + of.local_offset(syn),
                        ack, p.flags, p.win or 0, p.urg, codec.encode_options(options),
                        bytes(p.length) if not more.get("fill") else b"\7" * p.length)
    return codec.decode(codec.ipv4(6, codec.address(US[0]), codec.address(PEER[0]), segment, tos, ttl))


def same(expected: str, live: codec.Packet, of: Flow, options: Options = OPTIONS,
         part: Part | None = None) -> None:
    compare_tcp(line(expected), live, of, options, part or Part())


# --- bytes ---------------------------------------------------------------------------------------------


def test_injected_packet_is_what_scapy_reads() -> None:
    raw, gso = build_tcp(line("< [ce] PE. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 0>"), flow(), OPTIONS)
    ip = scapy.IP(raw)
    assert (ip.src, ip.dst, ip.tos, ip.len) == (PEER[0], US[0], 3, len(raw)) and gso == 0
    tcp = ip[scapy.TCP]
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.window) == (4444, 8080, 1001, 0xFFFFFFF5, 99)
    assert str(tcp.flags) == "PAE" and tcp.options[-1] == ("Timestamp",
                                                           (7, 0)) and bytes(tcp.payload) == bytes(10)
    sums = ip.chksum, tcp.chksum
    del ip.chksum, tcp.chksum
    again = scapy.IP(bytes(ip))
    assert (again.chksum, again[scapy.TCP].chksum) == sums


def test_accecn_count_is_three_bits() -> None:
    raw, _ = build_tcp(line("< .5 1:1(0) ack 1 win 1"), flow(), OPTIONS)
    assert codec.decode(raw).tcp.flags == codec.ACK | codec.AE | codec.ECE  # type: ignore[union-attr]


def test_sequence_numbers_wrap() -> None:
    raw, _ = build_tcp(line("< . 1:1(0) ack 100 win 1 <nop,nop,sack 20:30>"),
                       flow(live_remote_isn=0xFFFFFFFF), OPTIONS)
    tcp = codec.decode(raw).tcp
    assert tcp is not None and (tcp.seq, tcp.ack) == (0, 84)
    assert struct.unpack("!II", tcp.options[4:]) == (4, 14)


def test_syn_uses_the_number_as_written() -> None:
    raw, _ = build_tcp(line("< S 500:500(0) win 1"), flow(script_remote_isn=500, live_remote_isn=500),
                       OPTIONS)
    assert codec.decode(raw).tcp.seq == 500  # type: ignore[union-attr]


def test_large_segments_are_marked_as_super_segments() -> None:
    assert build_tcp(line("< . 1:3001(3000) ack 1 win 1"), flow(), Options(mss=1000))[1] == 1000
    assert build_tcp(line("< . 1:1001(1000) ack 1 win 1"), flow(), Options(mss=1000))[1] == 0
    assert build_tcp(line("< . 1:3001(3000) ack 1 win 1"), flow(), OPTIONS)[1] == 0


def test_ecr_is_translated() -> None:
    known = flow(ts_live={100: 987654})
    raw, _ = build_tcp(line("< . 1:1(0) ack 1 win 1 <nop,nop,TS val 5 ecr 100>"), known, OPTIONS)
    assert scapy.IP(raw)[scapy.TCP].options[-1] == ("Timestamp", (5, 987654))
    with pytest.raises(Difference, match="ecr"):
        build_tcp(line("< . 1:1(0) ack 1 win 1 <nop,nop,TS val 5 ecr 101>"), known, OPTIONS)
    scaled = flow(ts_first=(100, 5000))
    raw, _ = build_tcp(line("< . 1:1(0) ack 1 win 1 <nop,nop,TS val 5 ecr 130>"), scaled,
                       Options(tcp_ts_ecr_scaled=True))
    assert scapy.IP(raw)[scapy.TCP].options[-1] == ("Timestamp", (5, 5030))


def test_icmp_quotes_our_segment() -> None:
    raw = build_icmp(icmp_line("< icmp unreachable frag_needed mtu 800 [1:1001(1000)]"), flow())
    icmp = scapy.IP(raw)[scapy.ICMP]
    assert (icmp.type, icmp.code, icmp.nexthopmtu) == (3, 4, 800)
    live = codec.decode(raw)
    assert live.icmp is not None and live.icmp.quoted is not None and live.icmp.quoted.tcp is not None
    quoted = live.icmp.quoted
    assert (quoted.src, quoted.dst, quoted.total_length) == (US[0], PEER[0], 1040)
    assert quoted.tcp is not None and (quoted.tcp.sport, quoted.tcp.dport, quoted.tcp.seq) == (8080, 4444,
                                                                                               0xFFFFFFF1)
    assert quoted.ip_csum_ok and codec.checksum(raw[20:]) == 0


@pytest.mark.parametrize("text", [
    "mss 1460,nop,wscale 7,sackOK,TS val 1 ecr 2", "FO abcd,nop,nop,nop,nop", "FO,nop,nop", "FOEXP 00112233",
                                  "FOEXP",
    "nop,nop,sack 1:2 3:4", "ECN e0b 1 ceb 2 e1b 3,nop", "ECN e1b 9,nop,nop,nop",
    "md5 00112233445566778899aabbccddeeff,nop,nop", "mss 536,eol,eol,eol,eol",
])
def test_options_survive_encoding(text: str) -> None:
    packet = line(f"> S 0:0(0) <{text}>")
    assert codec.options_text(codec.encode_options(packet.options or ())) == text
    assert script_text(packet).endswith(f"<{text}>")


def test_broken_options_are_told() -> None:
    assert codec.options_text(b"\x02\x01\x00\x00").startswith("broken")
    assert codec.options_text(b"\x02\x08\x00\x00").startswith("broken")


@pytest.mark.parametrize("size", [0, 10, 19, 20, 30, 39])
def test_decoding_rubbish_does_not_raise(size: int) -> None:
    raw = codec.ipv4(6, bytes(4), bytes(4), bytes(20))[:size]
    assert codec.decode(raw).trouble
    codec.decode(b"\x45" + bytes(size))
    codec.decode(b"\x6f" + bytes(size))


# --- whose packet --------------------------------------------------------------------------------------


def test_packets_of_other_tuples_are_not_ours() -> None:
    live = emitted("> . 1:1(0) ack 1", flow())
    assert is_ours(flow(), live)
    assert not is_ours(flow(remote=("192.0.2.1", 4445)), live)


def test_a_connecting_flow_learns_from_the_syn() -> None:
    fresh = Flow(FlowState.SYN_SENT, (US[0], 0), PEER)
    assert not is_ours(fresh, emitted("> . 1:1(0) ack 1", flow()))
    assert is_ours(fresh, emitted("> S 0:0(0)", flow()))
    assert fresh.local == US and fresh.live_local_isn == 0xFFFFFFF0


# --- comparing -----------------------------------------------------------------------------------------

BASE = "> P. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>"


def test_equal_packets_are_equal() -> None:
    same(BASE, emitted(BASE, flow()), flow())
    same("> . 1:1(0) ack 1 <...>", emitted("> . 1:1(0) ack 1 win 7 <nop,nop,sack 5:6>", flow()), flow())
    same("> . 1:1(0) ack 1 <nop,nop,sack 5:6>", emitted("> . 1:1(0) ack 1 <nop,nop,sack 5:6>", flow()),
         flow())


@pytest.mark.parametrize(("expected", "what"), [
    ("> . 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "flag PSH"),
    ("> PF. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "flag FIN"),
    ("> PE. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "flag ECE"),
    ("> PA. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "flag AE"),
    ("> P. 2:12(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "sequence number"),
    ("> P. 1:11(10) ack 6 win 99 <nop,nop,TS val 7 ecr 9>", "acknowledgement number"),
    ("> P. 1:11(10) ack 5 win 98 <nop,nop,TS val 7 ecr 9>", "window"),
    ("> P. 1:11(10) ack 5 win 99 urg 1 <nop,nop,TS val 7 ecr 9>", "urgent pointer"),
    ("> P. 1:10(9) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "payload length"),
    ("> P. 1:11(10) ack 5 win 99", "options"),
    ("> P. 1:11(10) ack 5 win 99 <TS val 7 ecr 9,nop,nop>", "options"),
    ("> P. 1:11(10) ack 5 win 99 <nop,eol,TS val 7 ecr 9>", "options"),
    ("> [tos 0x10] P. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "IP tos"),
    ("> [ect0] P. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "IP ECN bits"),
    ("> [ect01] P. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "IP ECN bits"),
    ("> [ttl 63] P. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>", "IP ttl"),
])
def test_each_difference_is_found(expected: str, what: str) -> None:
    with pytest.raises(Difference) as caught:
        same(expected, emitted(BASE, flow()), flow())
    assert caught.value.what == what


def test_payload_must_be_zero() -> None:
    with pytest.raises(Difference, match="payload"):
        same(BASE, emitted(BASE, flow(), fill=1), flow())


def test_window_left_out_is_not_compared_but_ack_is() -> None:
    same("> . 1:1(0) ack 1", emitted("> . 1:1(0) ack 1 win 5", flow()), flow())
    with pytest.raises(Difference, match="acknowledgement"):
        same("> R 1:1(0)", codec.decode(bytes(_raw_ack_without_flag())), flow())


def _raw_ack_without_flag() -> bytes:
    segment = codec.tcp(codec.address(US[0]), codec.address(PEER[0]), US[1], PEER[1], 0xFFFFFFF1, 77,
                        codec.RST, 0, 0,
                        b"", b"")
    return codec.ipv4(6, codec.address(US[0]), codec.address(PEER[0]), segment)


def test_timestamps_are_compared_only_with_a_tick() -> None:
    live = flow()
    same("> . 1:1(0) ack 1 <nop,nop,TS val 100 ecr 0>",
         emitted("> . 1:1(0) ack 1 <nop,nop,TS val 7000 ecr 3>", live),
         live, Options(tcp_ts_tick_usecs=1000))
    assert live.ts_live == {100: 7000} and live.ts_first == (100, 7000)
    later = emitted("> . 1:1(0) ack 1 <nop,nop,TS val 7050 ecr 3>", live)
    same("> . 1:1(0) ack 1 <nop,nop,TS val 999 ecr 0>", later, live)
    same("> . 1:1(0) ack 1 <nop,nop,TS val 152 ecr 0>", later, live, Options(tcp_ts_tick_usecs=1000))
    with pytest.raises(Difference, match="TS val"):
        same("> . 1:1(0) ack 1 <nop,nop,TS val 155 ecr 0>", later, live, Options(tcp_ts_tick_usecs=1000))


def test_strict_verifies_the_tcp_checksum() -> None:
    raw = bytearray(emitted(BASE, flow()).raw)
    raw[36] ^= 1
    live = codec.decode(bytes(raw))
    same(BASE, live, flow())
    with pytest.raises(Difference, match="TCP checksum"):
        same(BASE, live, flow(), Options(strict=True))


def test_ip_checksum_and_length_are_always_verified() -> None:
    raw = bytearray(emitted(BASE, flow()).raw)
    raw[10] ^= 1
    with pytest.raises(Difference, match="IP header checksum"):
        same(BASE, codec.decode(bytes(raw)), flow())
    with pytest.raises(Difference, match="total length"):
        same(BASE, codec.decode(emitted(BASE, flow()).raw + b"\0"), flow())


def test_parts_of_a_super_segment() -> None:
    whole = "> PFW. 1:2501(2500) ack 1"
    first = emitted("> PW. 1:1001(1000) ack 1", flow())
    middle = emitted("> . 1001:2001(1000) ack 1", flow())
    last = emitted("> PF. 2001:2501(500) ack 1", flow())
    same(whole, first, flow(), part=Part(0, True, False))
    same(whole, middle, flow(), part=Part(1000, False, False))
    same(whole, last, flow(), part=Part(2000, False, True))
    assert continues(first, middle, 1000) and continues(middle, last, 1000) and not continues(last, middle,
                                                                                              1000)
    with pytest.raises(Difference, match="PSH"):
        same(whole, emitted("> F. 2001:2501(500) ack 1", flow()), flow(), part=Part(2000, False, True))
    with pytest.raises(Difference, match="FIN"):
        same(whole, emitted("> FW. 1:1001(1000) ack 1", flow()), flow(), part=Part(0, True, False))
    with pytest.raises(Difference, match="CWR"):
        same(whole, emitted("> W. 1001:2001(1000) ack 1", flow()), flow(), part=Part(1000, False, False))
    piece = emitted("> P. 1:1001(1000) ack 1", flow())
    same("> . 1:2501(2500) ack 1", piece, flow(), part=Part(0, True, False))
    with pytest.raises(Difference, match="PSH"):
        same("> . 1:2501(2500) ack 1", emitted("> P. 2001:2501(500) ack 1", flow()), flow(),
             part=Part(2000, False, True))


def test_parts_that_do_not_belong_together() -> None:
    first = emitted("> . 1:1001(1000) ack 1", flow())
    for other in ("> . 1002:2002(1000) ack 1", "> . 1001:2001(1000) ack 2", "> . 1001:2001(1000) ack 1 win 1",
                  "> . 1001:2001(1000) ack 1 <nop,nop,nop,nop>", "> . 1001:2002(1001) ack 1",
                  "> . 1001:1001(0) ack 1"):
        assert not continues(first, emitted(other, flow()), 1000), other


def test_icmp_type_and_code() -> None:
    live = codec.decode(build_icmp(icmp_line("< icmp unreachable port_unreachable"), flow()))
    compare_icmp(icmp_line("> icmp unreachable port_unreachable"), live)
    for other in ("> icmp unreachable host_unreachable", "> icmp redirect code_3"):
        with pytest.raises(Difference):
            compare_icmp(icmp_line(other), live)
    with pytest.raises(Difference, match="protocol"):
        same("> . 1:1(0) ack 1", live, flow())
    with pytest.raises(Difference, match="protocol"):
        compare_icmp(icmp_line("> icmp unreachable port_unreachable"), emitted(BASE, flow()))


def test_live_text_reads_as_a_script() -> None:
    assert live_text(emitted(BASE, flow()), flow()) == "P. 1:11(10) ack 5 win 99 <nop,nop,TS val 7 ecr 9>"
