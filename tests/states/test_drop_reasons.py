"""Drop reasons: one name per discarded packet, counted for the stack and for the listener that decided, and shown as events."""

import pytest

import ustack
from tests.kit.testbed import Testbed

OPTS = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"


def test_a_listener_counts_what_it_decides_and_nothing_else():
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 0}) as t:
        other = t.listen(81, 5)
        t.line(f"0 2000 < S 0 win 65535 {OPTS}")
        t.line(f"0 2001 < S 0 win 65535 {OPTS} ! TCP_REQQFULL_DROP")
        t.line(f"0 2002 < S 0 win 65535 {OPTS} ! TCP_REQQFULL_DROP")
        t.line("0 2003 < F 0 win 65535 ! TCP_FLAGS")
        t.line("0 2004 < R 0 win 65535 ! TCP_LISTEN_RST")
        t.line("0 2005 < . 0 ack =7 win 65535 ! TCP_FLAGS")
        t.line("0 2000 < R 500000 win 0 ! TCP_REQ_OOW")
        t.stack.inject(b"junk")
        port, t.port = t.port, 9999
        t.line("0 2006 < S 0 win 65535 ! NO_SOCKET")
        t.port = port
        t.swallow()
        mine = {"TCP_REQQFULL_DROP": 2, "TCP_FLAGS": 2, "TCP_LISTEN_RST": 1, "TCP_REQ_OOW": 1}
        assert t.stack.drops(t.listener) == mine
        assert t.stack.drops(other) == {}
        assert t.stack.drops() == mine | {"NO_SOCKET": 1, "PKT_TOO_SMALL": 1} or t.stack.drops() == mine | {"NO_SOCKET": 1, "IP_INHDR": 1}
        rows = {row["lport"]: row for row in t.stack.dump() if row["kind"] == "listen"}
        assert rows[80]["drop_reasons"] == mine and rows[81]["drop_reasons"] == {}
        other.close()


def test_the_sum_of_the_reasons_is_every_packet_that_was_not_taken():
    with Testbed(backlog=1) as t:
        refused = 0
        for port in range(3000, 3040):
            refused += t.inject(bytes(port % 60)) != 0
        for port in range(3000, 3010):
            before = sum(t.stack.drops().values())
            t.line(f"0 {port} < S 0 win 65535 {OPTS}")
            refused += sum(t.stack.drops().values()) - before
        assert refused == sum(t.stack.drops().values()) > 0
        t.swallow()


def test_drops_of_a_closed_listener_or_a_connection():
    with Testbed() as t:
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        with pytest.raises(OSError, match="not a listener"):
            t.stack.drops(conn)
        conn.close()
        t.listener.close()
        with pytest.raises(OSError):
            t.stack.drops(t.listener)
        t.swallow()


def test_a_request_whose_listener_dies_with_it_counts_only_for_the_stack():
    with Testbed() as t:
        t.line(f"0 2000 < S 0 win 65535 {OPTS}")
        t.listener.close()
        t.swallow()
        t.line("0 2000 < . 1 ack 1 win 512 ! NO_SOCKET")
        t.swallow()
        assert t.stack.pools()["listeners"] == 0


# ---- events -------------------------------------------------------------------------------------------------------------------
def test_no_stream_no_ring_and_a_stream_from_now_on():
    with Testbed() as t:
        t.line("0 2000 < F 0 win 65535 ! TCP_FLAGS")
        with t.stack.events() as stream:
            assert stream.take() == []
            t.line("0.25 2001 < F 0 win 65535 ! TCP_FLAGS")
            (event,) = stream.take()
            assert event == (250_000_000, "drop", (t.server, 80), (t.peer, 2001), None,
                             {"reason": "TCP_FLAGS", "listener": t.listener.handle}, 0)
            assert stream.take() == []
        t.line("0.5 2002 < F 0 win 65535 ! TCP_FLAGS")
        assert stream.take() == []


def test_events_of_a_connections_life():
    with Testbed(sysctl={"net.ipv4.tcp_early_retrans": 0}) as t, t.stack.events() as stream:
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        handle = conn.handle
        conn.send(b"x")
        t.advance(300_000_000)
        conn.close()
        t.swallow()
        got = [(e.kind, e.handle == handle, {k: v for k, v in e.info.items() if k != "seq"}) for e in stream]
        assert got == [
            ("state", True, {"state": 7, "new_state": 3}),
            ("queued", True, {"accept_queue": 1, "backlog": 128}),
            ("state", True, {"state": 3, "new_state": 1}),
            ("retransmit", True, {"segs": 1}),
            ("state", True, {"state": 1, "new_state": 4}),
        ]


def test_a_full_stream_loses_the_oldest_and_counts_them():
    with Testbed() as t, t.stack.events(capacity=3) as small, t.stack.events(capacity=100) as large:
        for port in range(2000, 2008):
            t.line(f"0 {port} < F 0 win 65535 ! TCP_FLAGS")
        assert [e.peer[1] for e in large.take()] == list(range(2000, 2008)) and large.lost == 0
        assert [e.peer[1] for e in small.take()] == [2005, 2006, 2007] and small.lost == 5
    with pytest.raises(ValueError):
        t.stack.events(capacity=0)


def test_the_engines_own_ring_is_bounded_too():
    with Testbed() as t, t.stack.events(capacity=2) as stream:
        for port in range(2000, 2008):
            t.line(f"0 {port} < F 0 win 65535 ! TCP_FLAGS")
        assert [e.peer[1] for e in stream.take()] == [2006, 2007]
        assert stream.lost == 6


def test_engine_events_is_a_list_since_the_last_call():
    engine = ustack.Engine("192.0.2.1/24", seed=1)
    assert engine.events() == []
    engine.receive(b"junk", now=5)
    assert [(e.at, e.kind, e.info["listener"]) for e in engine.events()] == [(5, "drop", None)]
    assert engine.events() == []


# ---- what was kept first and goes later ---------------------------------------------------------------------------------------
def fragment(first, last, ident=7, offset=0):
    from scapy.all import IP, Raw

    return bytes(IP(src="192.0.2.2", dst="192.0.2.1", proto=6, id=ident, frag=offset // 8, flags=0 if last else "MF") / Raw(bytes(last or first)))


def test_fragments_that_wait_in_vain_are_dropped_by_name():
    with Testbed() as t, t.stack.events() as stream:
        for offset in (8, 24):
            t.inject(fragment(8, 0, offset=offset))
        t.advance(31_000_000_000)
        assert t.stack.drops() == {"FRAG_REASM_TIMEOUT": 2}
        assert [(e.at, e.info["reason"], e.peer[0]) for e in stream] == [(30_000_000_000, "FRAG_REASM_TIMEOUT", "192.0.2.2")] * 2
        t.swallow()


def test_fragments_of_a_reused_id_are_too_far():
    with Testbed(sysctl={"net.ipv4.ipfrag_max_dist": 2}) as t:
        t.inject(fragment(8, 0, ident=1))
        for ident in range(2, 6):
            t.inject(fragment(8, 0, ident=ident))
        t.inject(fragment(8, 0, ident=1, offset=16))
        assert t.stack.drops() == {"FRAG_TOO_FAR": 1}


def test_out_of_order_data_that_is_covered_is_a_drop_and_an_event():
    with Testbed() as t:
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        with t.stack.events() as stream:
            t.line("0.1 < . 101:201 ack 1 win 512 <nop,nop,TS 1000 0>")
            t.line("0.1 < . 51:301 ack 1 win 512 <nop,nop,TS 1000 0>")
            assert [(e.info["reason"], e.peer[1], e.info["listener"]) for e in stream] == [("TCP_OFOMERGE", 1000, None)]
        assert t.stack.drops() == {"TCP_OFOMERGE": 1}
        conn.close()
        t.swallow()


def test_no_socket_for_a_child_is_named():
    with Testbed(limits={"sockets": 1}) as t:
        t.line(f"0 2000 < S 0 win 65535 {OPTS}")
        ts = t.flow(2000).out[0][1]
        t.line(f"0 2000 < . 1 ack ={ts['TCP'].seq + 1} win 512 <nop,nop,TS 1000 ={dict(ts['TCP'].options)['Timestamp'][0]}> ! POOL_TCB")
        assert t.stack.drops(t.listener) == {"POOL_TCB": 1}
        t.swallow()
