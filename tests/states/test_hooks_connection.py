"""Python hooks of connections and calls in virtual time: what each is told, and that what it chooses changes a packet or a result."""

import errno

import pytest
from scapy.all import TCP

import ustack
from tests.kit.hookbed import OPTS, SECOND, answer, options, sent, syn
from tests.kit.testbed import Testbed


# ---- connections -------------------------------------------------------------------------------------------------------------------
def test_established_sets_the_window_before_the_state_changes():
    with Testbed() as t:
        seen = []

        @t.stack.on("established")
        def born(view):
            seen.append((view.state, view.passive, view.cwnd_now, view.mss))
            view.cwnd = 2

        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        conn.setblocking(False)
        conn.send(bytes(20 * 1448))
        assert len(sent(t)) == 2
        assert seen == [(3, True, 10, 1448)]
        conn.close()
        t.swallow()


def test_established_refuses():
    with Testbed() as t:
        t.stack.on("established", lambda view: "reset")
        syn(t, 0)
        packet = answer(t)
        t.line(f"0 < . 1 ack ={packet[TCP].seq + 1} win 512 <nop,nop,TS 1000 ={options(packet)['Timestamp'][0]}> ! HOOK")
        reset = answer(t)
        assert "R" in reset[TCP].flags and reset[TCP].seq == packet[TCP].seq + 1
        with pytest.raises(BlockingIOError):
            t.listener.accept()
        assert t.stack.pools()["sockets"] == 1
        assert t.stack.nstat(zeros=True)["TcpCurrEstab"] == 0


def test_established_refuses_a_fast_open_child():
    with Testbed(sysctl={"net.ipv4.tcp_fastopen": 0x602}) as t:
        t.stack.on("established", lambda view: "reset")
        t.line("0 < S 0(10) win 65535 <mss 1460,fo> ! HOOK")
        assert "R" in answer(t)[TCP].flags
        assert t.stack.pools()["sockets"] == 1


def test_established_of_an_active_connection():
    with Testbed() as t:
        seen = []
        t.stack.on("established", lambda view: seen.append((view.passive, view.peer)))
        left, right = ustack.MemoryLink.pair()
        clock = ustack.VirtualClock()
        with ustack.Stack(left, "192.0.2.1/24", clock=clock) as a, ustack.Stack(right, "192.0.2.2/24", clock=clock) as b:
            a.on("established", lambda view: seen.append((view.passive, view.peer)))
            server = b.create_server(("192.0.2.2", 80))
            a.create_connection(("192.0.2.2", 80)).close()
            server.close()
        assert seen == [(False, ("192.0.2.2", 80))]


def test_queued_front_turns_the_queue_round():
    with Testbed() as t:
        seen = []
        t.stack.on("queued", lambda view: (seen.append((view.peer[1], view.accept_queue)), "front" if view.peer[1] == 1003 else None)[1])
        for port in (1001, 1002, 1003, 1004):
            t.connect(port, 0)
        order = [t.listener.accept() for _ in range(4)]
        assert [peer[1] for _, peer in order] == [1003, 1001, 1002, 1004]
        assert seen == [(1001, 0), (1002, 1), (1003, 2), (1004, 3)]
        for conn, _ in order:
            conn.close()
        t.swallow()


def test_accept_refuses_and_goes_on():
    with Testbed() as t:
        seen = []

        @t.stack.on("accept")
        def taken(view):
            seen.append((view.peer[1], view.accept_queue))
            return "reset" if view.peer[1] == 1001 else None

        for port in (1001, 1002):
            t.connect(port, 0)
        conn, peer = t.listener.accept()
        assert peer[1] == 1002
        assert "R" in answer(t, 1001)[TCP].flags
        assert seen == [(1001, 2), (1002, 1)]
        conn.close()
        t.swallow()


def test_accept_hook_may_use_the_stack():
    with Testbed() as t:
        first = []

        @t.stack.on("accept")
        def steal(view):
            if not first:
                first.append(None)
                first[0] = t.listener.accept()     # asks again for the same connection, and takes it

        t.connect(1001, 0)
        with pytest.raises(BlockingIOError):
            t.listener.accept()
        assert first[0][1][1] == 1001
        first[0][0].close()
        t.swallow()


def test_state_sees_every_change_and_sets_tos():
    with Testbed() as t:
        seen = []

        @t.stack.on("state")
        def change(view):
            seen.append((view.state, view.new_state))
            if view.new_state == 8:
                view.tos = 0x48

        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        t.line("0.1 < F. 1 ack 1 win 512 <nop,nop,TS 1000 0>")
        t.swallow()
        conn.close()
        assert answer(t).tos == 0x48
        assert seen == [(7, 3), (3, 1), (1, 8), (8, 9)]


def test_retransmit_and_rto():
    with Testbed(sysctl={"net.ipv4.tcp_early_retrans": 0}) as t:
        seen = []

        @t.stack.on("retransmit")
        def again(view):
            seen.append(("retransmit", view.segs, view.err))
            view.tos = 0x20

        t.stack.on("rto", lambda view: seen.append(("rto", view.retransmits, view.expired)))
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        conn.send(b"hello")
        t.advance(SECOND)
        packets = [p for _, p in sent(t)]
        assert [p.tos for p in packets] == [0, 0, 0x20], "set after the first retransmission"
        assert seen == [("rto", 0, False), ("retransmit", 1, 0), ("rto", 1, False), ("retransmit", 1, 0)]
        conn.close()
        t.swallow()


def test_rtt_sets_the_rto():
    with Testbed(sysctl={"net.ipv4.tcp_early_retrans": 0}) as t:
        seen = []

        @t.stack.on("rtt")
        def sample(view):
            seen.append(view.rtt_us)
            view.rto_ms = 700

        t.line(f"0 < S 0 win 65535 {OPTS}")
        packet = answer(t)
        t.line(f"0.03 < . 1 ack ={packet[TCP].seq + 1} win 512 <nop,nop,TS 1000 ={options(packet)['Timestamp'][0]}>")
        assert seen == [30_000]
        conn, _ = t.listener.accept()
        conn.send(b"hello")
        t.advance(int(0.74 * SECOND))
        assert [at for at, _ in sent(t)] == [0.03, 0.73]
        conn.close()
        t.swallow()


def test_drop_sees_the_reason_and_may_reset():
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 0}) as t:
        seen = []
        t.stack.on("drop", lambda view: (seen.append((view.reason, view.listener, view.peer)), "reset")[1])
        syn(t, 0, 2000)
        t.swallow()
        t.line(f"0 2001 < S 0 win 65535 {OPTS} ! TCP_REQQFULL_DROP")
        packet = answer(t, 2001)
        assert "R" in packet[TCP].flags and packet[TCP].ack == 10001
        assert seen == [("TCP_REQQFULL_DROP", t.listener.handle, (t.peer, 2001))]


def test_reuseport_chooses_the_member():
    with Testbed(backlog=None) as t:
        members = t.group(4)
        seen = []

        @t.stack.on("reuseport")
        def choose(view):
            seen.append((view.members, view.default))
            view.member = 2

        for port in range(3000, 3008):
            t.connect(port, 0)
        assert all(n == 4 for n, _ in seen) and len({d for _, d in seen}) > 1
        accepted = [members[2].accept()[0] for _ in range(8)]
        for sock in accepted + members:
            sock.close()
        t.swallow()


def test_reuseport_choice_outside_the_group_is_ignored():
    with Testbed(backlog=None) as t:
        sock = t.stack.socket()
        sock.setsockopt(1, 15, 1)
        sock.bind(("0.0.0.0", 80))
        sock.listen(16)
        t.stack.on("reuseport", lambda view: setattr(view, "member", 9))
        t.connect(3000, 0)
        sock.accept()[0].close()
        t.swallow()


def test_reuseport_chooses_who_takes_over_from_a_closed_member():
    """tcp_migrate_req, as a SELECT_OR_MIGRATE program: half-open connections at their ACK and timer, one that nobody has accepted at close()."""
    with Testbed(backlog=None, sysctl={"net.ipv4.tcp_migrate_req": 1}) as t:
        members = t.group(4)
        seen = []

        @t.stack.on("reuseport")
        def choose(view):
            seen.append((view.peer[1], view.members, view.migrating))
            view.member = 0 if view.migrating is None else 2

        t.connect(3000, 0)
        for port in (3001, 3002):
            t.run(f"0 {port} < S 0 win 65535 {OPTS}\n0 {port} > S. 0 ack 1")
        members[0].close()                      # the last member gets its place; then 2 is members[2]
        t.run("0.5 3001 < . 1 ack 1\n1 3002 > S. 0 ack 1\n1.5 3002 < . 1 ack 1")
        assert [m[1:] for m in seen if m[2] is not None] == [(3, "connection"), (3, "request"), (3, "request")]
        assert sorted(members[2].accept()[1][1] for _ in range(3)) == [3000, 3001, 3002]
        for sock in members[1:]:
            sock.close()
        t.swallow()


# ---- calls -------------------------------------------------------------------------------------------------------------------------
def test_listen_refuses_with_an_errno():
    with Testbed(backlog=None) as t:
        seen = []

        @t.stack.on("listen")
        def listening(view):
            seen.append((view.local, view.first, view.backlog))
            return errno.EACCES if view.local[1] == 81 else None

        with pytest.raises(PermissionError):
            t.listen(81, 5)
        sock = t.listen(80, 5)
        sock.listen(9)
        assert seen == [(("0.0.0.0", 81), True, 5), (("0.0.0.0", 80), True, 5), (("0.0.0.0", 80), False, 9)]
        t.line(f"0 < S 0 win 65535 {OPTS}")
        assert len(sent(t)) == 1


def test_connect_refuses_and_sets_the_first_timeout():
    clock = ustack.VirtualClock()
    with ustack.Stack(None, "192.0.2.1/24", clock=clock) as stack:

        @stack.on("connect")
        def connecting(view):
            view.rto_ms = 250
            return "EPERM" if view.peer[1] == 81 else None

        sock = stack.socket()
        sock.setblocking(False)
        with pytest.raises(PermissionError):
            sock.connect(("192.0.2.9", 81))
        with pytest.raises(BlockingIOError):
            sock.connect(("192.0.2.9", 80))
        assert [at for at, _ in stack.run_until(300_000_000)] == [0, 250_000_000]
        sock.close()
