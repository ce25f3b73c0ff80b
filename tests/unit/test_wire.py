"""IPv4, TCP and ICMP against scapy, both ways; the option walk against the rules recorded from Linux."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from .door import ct

DROP = {name: i for i, name in enumerate(ct.drop_names())}
SYN, ACK = 0x02, 0x10
u8, u16, u32 = (st.integers(0, (1 << n) - 1) for n in (8, 16, 32))
addresses = st.builds(lambda a: ".".join(map(str, a.to_bytes(4, "big"))), u32)


def addr(text):
    return int.from_bytes(bytes(map(int, text.split("."))), "big")


def packet(opts=b"", payload=b"", flags="S", **ip):
    """A TCP packet built by scapy, with option bytes exactly as given (a multiple of four)."""
    tcp = TCP(sport=1234, dport=80, seq=1000, ack=5, window=512, flags=flags, dataofs=5 + len(opts) // 4)
    return bytes(IP(src="198.51.100.7", dst="192.0.2.1", **ip) / tcp / Raw(opts + payload))


def with_options(p, opts):
    """The packet with IP options (a multiple of four bytes) put behind its header."""
    head = bytearray(p[:20] + opts)
    head[0] = 0x45 + len(opts) // 4
    struct.pack_into("!H", head, 2, len(p) + len(opts))
    struct.pack_into("!HH", head, 8, struct.unpack_from("!H", head, 8)[0], 0)
    struct.pack_into("!H", head, 10, ct.checksum(bytes(head)))
    return bytes(head) + p[20:]


# ---- IPv4 in


@given(
    addresses, addresses, u16, u8, u8, u8, st.integers(0, 7), st.integers(0, 0x1FFF), st.binary(max_size=60)
)
def test_ip_header_as_scapy_wrote_it(src, dst, ip_id, tos, ttl, proto, flags, frag, payload):
    p = bytes(
        IP(src=src, dst=dst, id=ip_id, tos=tos, ttl=ttl, proto=proto, flags=flags, frag=frag) / Raw(payload)
    )
    reason, got = ct.parse_ip(p)
    assert reason == 0
    assert got == {
        "ip_len": len(p),
        "ip_hlen": 20,
        "src": addr(src),
        "dst": addr(dst),
        "ip_id": ip_id,
        "tos": tos,
        "ttl": ttl,
        "proto": proto,
        "frag": flags << 13 | frag,
        "l4": 20,
        "l4_len": len(payload),
    }


def test_ip_options_move_the_payload():
    reason, got = ct.parse_tcp(with_options(packet(payload=b"xyz"), b"\x94\x04\0\0" + b"\1" * 36))
    assert (reason, got["ip_hlen"], got["l4"], got["data"]) == (0, 60, 60, b"xyz")
    assert got["csum_ok"]


def test_trailing_bytes_are_trimmed():
    p = packet(payload=b"data")
    reason, got = ct.parse_tcp(p + b"padding")
    assert (reason, got["ip_len"], got["data"], got["csum_ok"]) == (0, len(p), b"data", True)


def broken(p, fix=True, **at):
    """The packet with 16-bit words replaced (w2=..., at byte 2), its header checksum made right if asked."""
    out = bytearray(p)
    for where, value in at.items():
        struct.pack_into("!H", out, int(where[1:]), value)
    if fix:
        struct.pack_into("!H", out, 10, 0)
        struct.pack_into("!H", out, 10, ct.checksum(bytes(out[: (out[0] & 15) * 4])))
    return bytes(out)


P = packet(payload=b"0123456789")


@pytest.mark.parametrize(
    ("p", "reason"),
    [
        (b"", "PKT_TOO_SMALL"),
        (P[:19], "PKT_TOO_SMALL"),
        (broken(P, w0=0x5500), "IP_INHDR"),
        (broken(P, w0=0x6500), "IP_INHDR"),
        (broken(P, w0=0x4400), "IP_INHDR"),
        (broken(P, fix=False, w0=0x4F00)[:40], "PKT_TOO_SMALL"),
        (broken(P, fix=False, w10=0x1234), "IP_CSUM"),
        (broken(P, w2=51), "IP_TRUNCATED"),
        (P[:-1], "IP_TRUNCATED"),
        (broken(P, w2=19), "IP_INHDR"),
        (broken(P, w2=0), "IP_INHDR"),
        (broken(P, w2=20), "NONE"),
        (broken(P, w6=0x8000), "NONE"),  # the reserved flag bit is ignored
    ],
)
def test_bad_headers_in_the_order_of_linux(p, reason):
    got, fields = ct.parse_ip(p)
    assert ct.drop_names()[got] == reason
    assert bool(fields) == (reason == "NONE")


def test_the_first_step_tells_whether_the_ecn_field_counts():
    assert ct.parse_ip_head(P[:19]) == (DROP["PKT_TOO_SMALL"], 0, 0, None)
    assert ct.parse_ip_head(broken(P, w0=0x4403)) == (DROP["IP_INHDR"], 0, 0, None)
    assert ct.parse_ip_head(broken(P, fix=False, w0=0x4F03)[:40]) == (DROP["PKT_TOO_SMALL"], 60, 3, None)
    assert ct.parse_ip_head(broken(P, fix=False, w0=0x4503)) == (0, 20, 3, False)
    assert ct.parse_ip_head(broken(P, w0=0x4503)) == (0, 20, 3, True)


@given(st.binary(max_size=80))
def test_no_bytes_at_all_can_upset_the_parsers(junk):
    ct.parse_ip(junk)
    ct.parse_quote(junk)
    header = bytes(IP(len=20 + len(junk), src="198.51.100.7", dst="192.0.2.1", proto=6))
    ct.parse_tcp(header + junk)
    ct.parse_icmp(header + junk)


# ---- TCP in


@given(
    u16,
    u16,
    u32,
    u32,
    u16,
    u16,
    st.integers(0, 0x1FF),
    st.lists(
        st.sampled_from(
            [("NOP", None), ("MSS", 1460), ("WScale", 7), ("SAckOK", b""), ("Timestamp", (1, 2))]
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
    st.integers(-1, 30),
)
def test_tcp_header_as_scapy_wrote_it(sport, dport, seq, ack, wnd, urg, flags, options, payload, damage):
    tcp = TCP(
        sport=sport, dport=dport, seq=seq, ack=ack, window=wnd, urgptr=urg, flags=flags, options=options
    )
    p = bytes(IP(src="198.51.100.7", dst="192.0.2.1") / tcp / Raw(payload))
    hlen = (p[32] >> 4) * 4
    if damage >= 0:
        at = 20 + hlen + len(payload) - 1 - damage % (len(payload) or 1)
        p = p[:at] + bytes([p[at] ^ 0x10]) + p[at + 1 :] if payload else p
    reason, got = ct.parse_tcp(p, opts=False)
    assert reason == 0
    want = {
        "sport": sport,
        "dport": dport,
        "seq": seq,
        "ack": ack,
        "wnd": wnd,
        "urg": urg,
        "flags": flags,
        "doff": hlen,
        "len": len(payload),
        "data": p[20 + hlen :],
        "end_seq": (seq + len(payload) + (flags >> 1 & 1) + (flags & 1)) & 0xFFFFFFFF,
        "csum_ok": damage < 0 or not payload,
    }
    assert {k: got[k] for k in want} == want


@pytest.mark.parametrize(
    ("doff", "l4_len", "reason"),
    [
        (5, 20, "NONE"),
        (5, 19, "PKT_TOO_SMALL"),
        (5, 0, "PKT_TOO_SMALL"),
        (6, 20, "PKT_TOO_SMALL"),
        (6, 24, "NONE"),
        (15, 59, "PKT_TOO_SMALL"),
        (15, 60, "NONE"),
        (4, 20, "NOT_SPECIFIED"),
        (0, 40, "NOT_SPECIFIED"),
        (4, 19, "PKT_TOO_SMALL"),
    ],
)
def test_data_offset(doff, l4_len, reason):
    segment = (bytes(12) + bytes([doff << 4]) + bytes(47))[:l4_len]
    p = bytes(IP(src="198.51.100.7", dst="192.0.2.1", proto=6) / Raw(segment))
    assert ct.drop_names()[ct.parse_tcp(p)[0]] == reason


@pytest.mark.parametrize("state", [ct.CSUM_PARTIAL, ct.CSUM_VERIFIED])
def test_a_checksum_nobody_has_to_verify(state):
    p = P[:36] + b"\x12\x34" + P[38:]
    assert ct.parse_tcp(p)[1]["csum_ok"] is False
    assert ct.parse_tcp(p, state)[1]["csum_ok"] is True


# ---- options


def opts(hexed, flags=SYN):
    got = ct.parse_opts(bytes.fromhex(hexed), flags)
    seen = got.pop("opts")
    got["seen"] = {name for name, bit in ct.OPT.items() if seen & bit}
    return got


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("", {"seen": set()}),
        ("020405b4", {"seen": {"mss"}, "mss": 1460}),
        ("02040000", {"seen": set()}),
        ("020405b402040000", {"seen": {"mss"}, "mss": 1460}),
        ("020405b402040200", {"seen": {"mss"}, "mss": 512}),
        (
            "020405b40402080a000003e80000000901030307",
            {"seen": {"mss", "sackok", "ts", "wscale"}, "mss": 1460, "ts": (1000, 9), "wscale": 7},
        ),
        ("0103030f", {"seen": {"wscale"}, "wscale": 14}),
        ("010303ff", {"seen": {"wscale"}, "wscale": 14}),
        ("01030300", {"seen": {"wscale"}, "wscale": 0}),
        ("0101080a000003e800000000", {"seen": {"ts"}, "ts": (1000, 0)}),
        ("080a000003e8000000000000", {"seen": {"ts"}, "ts": (1000, 0)}),
        ("00020405b4000000", {"seen": set()}),  # EOL stops
        ("0204", {"seen": set()}),  # runs past the header
        ("020405b41e", {"seen": {"mss"}, "mss": 1460}),  # no room for the length
        ("020405b4030003030700", {"seen": {"mss"}, "mss": 1460}),  # length 0 stops, what was seen counts
        ("020405b40301030307", {"seen": {"mss"}, "mss": 1460}),  # length 1 too
        ("0203050402", {"seen": {"sackok"}}),  # MSS of length 3 skipped
        ("0206000005b40402", {"seen": {"sackok"}}),  # MSS of length 6 skipped
        ("08080000000000000402", {"seen": {"sackok"}}),  # short timestamp skipped
        ("04030003030a", {"seen": {"wscale"}, "wscale": 10}),
        ("1e0400000402", {"seen": {"sackok"}}),  # unknown kind skipped
        ("050a0000000100000002", {"seen": set()}),  # SACK blocks mean nothing in a SYN
        ("1312" + "00" * 16, {"seen": {"md5"}}),
        ("1311" + "00" * 15, {"seen": set()}),
        ("1d040102", {"seen": set()}),
    ],
)
def test_options_of_a_syn(raw, want):
    assert opts(raw) == want


@pytest.mark.parametrize("raw", ["020405b4", "01030307", "04020101", "22020101", "fe04f989"])
def test_options_that_count_in_a_syn_only(raw):
    assert opts(raw, SYN)["seen"] and opts(raw, SYN | ACK)["seen"]
    assert opts(raw, ACK) == {"seen": set()}


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sack_blocks(n):
    blocks = [(100 * i, 100 * i + 50) for i in range(1, n + 1)]
    raw = ct.opt_sack(blocks).hex()
    assert opts(raw, ACK) == {"seen": {"sack"}, "sack": blocks}


@pytest.mark.parametrize("raw", ["0502", "0506000000010101", "050b" + "00" * 9, "0512" + "00" * 8])
def test_sack_of_a_wrong_length(raw):
    assert opts(raw, ACK) == {"seen": set()}


def test_timestamps_with_sack():
    raw = ct.opt_ts(7, 8) + ct.opt_sack([(1, 2), (3, 4), (5, 6)])
    assert len(raw) == 40
    assert opts(raw.hex(), ACK) == {"seen": {"ts", "sack"}, "ts": (7, 8), "sack": [(1, 2), (3, 4), (5, 6)]}


COOKIE = bytes(range(1, 17))


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("2202", b""),
        *[(f"22{n + 2:02x}" + COOKIE[:n].hex(), COOKIE[:n]) for n in (4, 6, 8, 16)],
        ("2204" + "0102", None),
        ("2214" + "00" * 18, None),
        ("2205" + "010203", None),
        ("2209" + "01" * 7, None),
        ("22020203", b""),
        ("220a" + COOKIE[:8].hex() + "2203ff", COOKIE[:8]),  # an odd one is as if it were not there
        ("220a" + COOKIE[:8].hex() + "2204ffff", None),  # a wrong even one undoes the earlier
    ],
)
def test_fast_open_cookie(raw, want):
    got = opts(raw)
    assert got.get("cookie") == want
    assert ("fastopen" in got["seen"]) == (want is not None)
    assert "fo_exp" not in got["seen"]


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("fe04f989", b""),
        ("fe0cf989" + COOKIE[:8].hex(), COOKIE[:8]),
        ("fe04f988", None),
        ("fe03f9", None),
        ("fe02", None),
        ("fe05f98901", None),
        ("fe06f9890102", None),
    ],
)
def test_fast_open_cookie_in_the_experimental_form(raw, want):
    got = opts(raw)
    assert got.get("cookie") == want
    assert got["seen"] == ({"fastopen", "fo_exp"} if want is not None else set())


@given(st.binary(max_size=40), st.sampled_from([SYN, ACK]))
def test_any_option_bytes_are_walked_safely(raw, flags):
    got = ct.parse_opts(raw, flags)
    if flags == ACK:
        assert not got["opts"] & (ct.OPT["mss"] | ct.OPT["wscale"] | ct.OPT["sackok"] | ct.OPT["fastopen"])


@given(u32, u32)
def test_the_fast_path_for_timestamps_equals_the_walk(tsval, tsecr):
    raw = ct.opt_ts(tsval, tsecr)
    assert (
        ct.parse_opts(raw, ACK)
        == ct.parse_opts(raw + b"\1\1\1\1", ACK)
        == {"opts": ct.OPT["ts"], "ts": (tsval, tsecr)}
    )


# ---- out


@given(addresses, addresses, u16, st.booleans(), u8, u8, u8, st.integers(20, 65535))
def test_ip_header_as_scapy_would_write_it(src, dst, ip_id, df, ttl, proto, tos, total):
    want = bytes(
        IP(src=src, dst=dst, id=ip_id, flags="DF" if df else 0, ttl=ttl, proto=proto, tos=tos, len=total)
    )
    assert ct.put_ip(total, ip_id, df, ttl, proto, addr(src), addr(dst), tos) == want


def test_ip_header_with_options():
    options = bytes.fromhex("07070400000000" + "00")
    p = ct.put_ip(28 + 4, 1, False, 64, 6, addr("192.0.2.1"), addr("192.0.2.2"), 0, options)
    assert p[20:] == options
    reason, got = ct.parse_ip(p + b"body")
    assert (reason, got["ip_hlen"], got["l4_len"]) == (0, 28, 4)


def test_fragment_header():
    p = ct.put_ip(1500, 77, False, 64, 1, addr("192.0.2.1"), addr("192.0.2.2"), 0)
    got = IP(ct.ip_set_frag(p, 996, 0x2000 | 61))
    assert (got.len, int(got.flags), got.frag) == (996, 1, 61)
    assert ct.checksum(bytes(got)[:20]) == 0


OPTIONS = {
    b"": [],
    ct.opt_mss(1460): [("MSS", 1460)],
    ct.opt_ts(1, 2): [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))],
    ct.opt_ts(1, 2, True): [("SAckOK", b""), ("Timestamp", (1, 2))],
    ct.opt_sackperm_nop(): [("NOP", None), ("NOP", None), ("SAckOK", b"")],
    ct.opt_wscale_nop(10): [("NOP", None), ("WScale", 10)],
    ct.opt_sack([(5, 9)]): [("NOP", None), ("NOP", None), ("SAck", (5, 9))],
    ct.opt_sack([(5, 9), (20, 30)]): [("NOP", None), ("NOP", None), ("SAck", (5, 9, 20, 30))],
}


@given(
    addresses,
    addresses,
    u16,
    u16,
    u32,
    u32,
    st.integers(0, 0x1FF),
    u16,
    u16,
    st.lists(st.sampled_from(list(OPTIONS)), max_size=2),
    st.binary(max_size=50),
    st.data(),
)
def test_tcp_segment_as_scapy_would_write_it(
    src, dst, sport, dport, seq, ack, flags, wnd, urg, chosen, payload, draw
):
    raw = b"".join(chosen)[:40] if sum(map(len, chosen)) <= 40 else chosen[0]
    parsed = [o for c in chosen for o in OPTIONS[c]] if raw == b"".join(chosen) else OPTIONS[chosen[0]]
    tcp = TCP(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=wnd, urgptr=urg, options=parsed)
    want = bytes(IP(src=src, dst=dst) / tcp / Raw(payload))[20:]
    split = draw.draw(st.integers(0, len(payload)))
    assert (
        ct.put_tcp(addr(src), addr(dst), sport, dport, seq, ack, flags, wnd, urg, raw, payload, split) == want
    )


def test_partial_checksum_is_what_hardware_completes():
    src, dst = addr("192.0.2.1"), addr("192.0.2.2")
    args = (src, dst, 80, 1234, 5, 6, ACK, 502, 0, ct.opt_ts(1, 2), b"some payload")
    partial, full = ct.put_tcp(*args, partial=True), ct.put_tcp(*args)
    assert ct.checksum(partial) == int.from_bytes(full[16:18], "big")


@pytest.mark.parametrize(
    ("n", "exp", "want"),
    [
        (8, False, "220a" + COOKIE[:8].hex() + "0101"),
        (8, True, "fe0cf989" + COOKIE[:8].hex()),
        (6, False, "2208" + COOKIE[:6].hex()),
        (6, True, "fe0af989" + COOKIE[:6].hex() + "0101"),
        (0, False, "22020101"),
        (0, True, "fe04f989"),
        (16, False, "2212" + COOKIE.hex() + "0101"),
    ],
)
def test_fast_open_option_as_linux_writes_it(n, exp, want):
    assert ct.opt_fastopen(COOKIE[:n], exp).hex() == want


def test_syn_ack_options_recorded_from_linux():
    """Facts C4, C5."""
    t = 0x11223344
    assert (ct.opt_mss(1460) + ct.opt_ts(t, 1000, True) + ct.opt_wscale_nop(10)).hex() == (
        "020405b40402080a11223344000003e80103030a"
    )
    assert (
        ct.opt_mss(1460) + ct.opt_sackperm_nop() + ct.opt_wscale_nop(10)
    ).hex() == "020405b4010104020103030a"


def test_syn_ack_packet_recorded_from_linux():
    """Facts C5: 4500002c 0000 4000 40 06, 6012 faf0."""
    src, dst = addr("192.0.2.1"), addr("192.0.2.2")
    p = ct.put_ip(44, 0, True, 64, 6, src, dst, 0)
    p += ct.put_tcp(src, dst, 80, 40000, 0x1111, 0x2222, SYN | ACK, 64240, 0, ct.opt_mss(1460))
    assert p[:10].hex() == "4500002c000040004006"
    assert p[32:36].hex() == "6012faf0"
    assert p == bytes(
        IP(
            bytes(
                IP(id=0, flags="DF", src="192.0.2.1", dst="192.0.2.2")
                / TCP(
                    sport=80,
                    dport=40000,
                    seq=0x1111,
                    ack=0x2222,
                    flags="SA",
                    window=64240,
                    options=[("MSS", 1460)],
                )
            )
        )
    )


# ---- ICMP


@given(u8, u8, u32, st.binary(max_size=60), st.booleans())
def test_icmp_message_round_trip(kind, code, rest, body, in_place):
    message = ct.put_icmp(kind, code, rest, body, in_place)
    reason, got = ct.parse_icmp(bytes(IP(src="192.0.2.1", dst="192.0.2.2", proto=1) / Raw(message)))
    assert reason == 0
    assert got.pop("check") == int.from_bytes(message[2:4], "big")
    assert got == {"type": kind, "code": code, "rest": rest, "body": body, "csum_ok": True}


def test_echo_reply_as_scapy_would_write_it():
    want = bytes(ICMP(type=0, id=0x1234, seq=7) / Raw(b"ping data"))
    assert ct.put_icmp(0, 0, 0x12340007, b"ping data") == want
    damaged = bytes(IP(proto=1) / Raw(want[:-1] + b"!"))
    assert ct.parse_icmp(damaged)[1]["csum_ok"] is False


@pytest.mark.parametrize("n", range(8))
def test_icmp_shorter_than_its_header(n):
    assert ct.parse_icmp(bytes(IP(proto=1) / Raw(bytes(n))))[0] == DROP["PKT_TOO_SMALL"]


def test_quoted_packet():
    reason, q = ct.parse_quote(P[:28])
    assert reason == 0
    assert q == {
        "src": addr("198.51.100.7"),
        "dst": addr("192.0.2.1"),
        "proto": 6,
        "tos": 0,
        "frag": 0,
        "ip_hlen": 20,
        "l4_len": 8,
        "sport": 1234,
        "dport": 80,
        "seq": 1000,
    }
    assert ct.parse_quote(P[:27])[1]["sport"] == 0
    assert ct.parse_quote(with_options(P, b"\1" * 8)[:36])[1]["seq"] == 1000
    assert ct.parse_quote(P[:19])[0] == DROP["PKT_TOO_SMALL"]
    assert ct.parse_quote(with_options(P, b"\1" * 8)[:27])[0] == DROP["PKT_TOO_SMALL"]
    assert ct.parse_quote(b"\x65" + P[1:28])[0] == 0  # the version of a quote is not looked at
    assert ct.parse_quote(b"\x44" + P[1:28])[0] == DROP["IP_INHDR"]
