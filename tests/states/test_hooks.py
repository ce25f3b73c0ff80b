"""Python hooks of the listen path in virtual time: what each is told, and that what it chooses changes a packet or a result. Hooks that fail."""

import logging

import pytest
from scapy.all import TCP

import ustack
from tests.kit.hookbed import OPTS, SECOND, answer, options, sent, syn
from tests.kit.testbed import Testbed


# ---- SYN ------------------------------------------------------------------------------------------------------------------
def test_syn_sees_the_segment_and_the_queues():
    with Testbed(backlog=7) as t:
        seen = []
        t.stack.on("syn", seen.append)
        t.line(f"0.5 2000 < SEW 0 win 4000 tos 8 ttl 33 {OPTS}")
        (view,) = seen
        assert (view.local, view.peer, view.seq, view.peer_window) == ((t.server, 80), (t.peer, 2000), 10000, 4000)
        assert (view.peer_mss, view.peer_wscale, view.sack_ok, view.tsval, view.ecn) == (1460, 7, True, 1000, True)
        assert (view.tos, view.ttl, view.time_wait, view.payload) == (8, 33, False, 0)
        assert (view.qlen, view.young, view.accept_queue, view.backlog) == (0, 0, 0, 7)
        assert view.listener == t.listener.handle
        assert TCP(view.packet[20:]).sport == 2000
        t.swallow()


def test_syn_chooses_isn_mss_window():
    with Testbed() as t:

        @t.stack.on("syn")
        def choose(view):
            view.isn, view.mss, view.window = 77, 1000, 5000

        syn(t, 0)
        first = answer(t)
        assert (first[TCP].seq, first[TCP].window, options(first)["MSS"]) == (77, 5000, 1000)
        t.advance(SECOND)
        again = answer(t)
        assert (again[TCP].seq, again[TCP].window, options(again)["MSS"]) == (77, 5000, 1000)
        t.line(f"1.2 < . 1 ack =78 win 500 <nop,nop,TS 1000 ={options(again)['Timestamp'][0]}>")
        conn, _ = t.listener.accept()
        assert len(t.rows("ESTAB")) == 1
        conn.close()
        t.swallow()


def test_syn_rwnd_init_counts_segments():
    with Testbed() as t:
        t.stack.on("syn", lambda view: setattr(view, "rwnd_init", 4))
        syn(t, 0)
        assert answer(t)[TCP].window == 4 * 1448


def test_syn_window_beyond_16_bits_is_the_childs():
    with Testbed() as t:
        t.stack.on("syn", lambda view: setattr(view, "window", 200_000))
        t.connect(1000, 0)
        conn, _ = t.listener.accept()
        t.line("0.1 1000 < P. 1(10) ack 1 win 512 <nop,nop,TS 1000 0>")
        t.advance(SECOND)
        packet = sent(t)[-1][1]
        assert packet[TCP].window << 10 >= 199_000
        conn.close()
        t.swallow()


def test_syn_rto_doubles_from_the_hooks_value():
    with Testbed(sysctl={"net.ipv4.tcp_synack_retries": 3}) as t:
        t.stack.on("syn", lambda view: setattr(view, "rto_ms", 300))
        syn(t, 0)
        t.advance(10 * SECOND)
        assert [at for at, _ in sent(t)] == [0, 0.3, 0.9, 2.1]


def test_syn_needs_ecn_makes_the_synack_ect0():
    with Testbed(sysctl={"net.ipv4.tcp_ecn": 0}) as t:
        syn(t, 0, 1001, flags="SEW")
        plain = answer(t, 1001)
        assert (plain.tos & 3, "E" in plain[TCP].flags) == (0, False)
        t.stack.on("syn", lambda view: setattr(view, "needs_ecn", True))
        syn(t, 0, 1002, flags="SEW")
        marked = answer(t, 1002)
        assert (marked.tos & 3, "E" in marked[TCP].flags) == (2, True)
        syn(t, 0, 1003)
        unasked = answer(t, 1003)
        assert (unasked.tos & 3, "E" in unasked[TCP].flags) == (2, False)
        syn(t, 0, 1004, flags="SEW")
        sent(t, 1004)
        t.advance(SECOND)
        assert answer(t, 1004).tos & 3 == 2, "each repetition is the same"
        t.swallow()


def test_syn_drop():
    with Testbed() as t:
        t.stack.on("syn", lambda view: "drop" if view.peer[1] == 1001 else None)
        t.line(f"0 1001 < S 0 win 65535 {OPTS} ! HOOK")
        assert t.stack.drops(t.listener) == {"HOOK": 1}
        syn(t, 0, 1002)
        assert "S" in answer(t, 1002)[TCP].flags
        t.check_quiet("end")


@pytest.mark.parametrize("cookies", [0, 1, 2])
def test_syn_accept_goes_past_full_queues(cookies):
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": cookies, "net.ipv4.tcp_max_syn_backlog": 4}) as t:
        t.stack.on("syn", lambda view: "accept")
        for port in range(2000, 2010):
            syn(t, 0, port)
        assert t.half_open() == 10
        assert t.stack.nstat().get("TcpExtSyncookiesSent", 0) == 0
        t.swallow()


def test_syn_forces_a_cookie_even_with_cookies_off():
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": 0}) as t:
        hook = t.stack.on("syn", lambda view: "cookie")
        t.connect(1000, 0)
        assert t.stack.nstat()["TcpExtSyncookiesSent"] == 1
        assert t.stack.nstat()["TcpExtSyncookiesRecv"] == 1
        conn, peer = t.listener.accept()
        assert peer == (t.peer, 1000)
        hook.remove()
        syn(t, 1, 1001)
        assert t.half_open() == 1
        conn.close()
        t.swallow()


def test_syn_forbids_a_cookie():
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 1}) as t:
        t.stack.on("syn", lambda view: "no_cookie")
        syn(t, 0, 2000)
        t.line(f"0 2001 < S 0 win 65535 {OPTS} ! TCP_REQQFULL_DROP")
        assert "TcpExtSyncookiesSent" not in t.stack.nstat()
        assert t.stack.nstat()["TcpExtTCPReqQFullDrop"] == 1
        t.swallow()


def test_syn_evicts_another_request():
    with Testbed() as t:
        syn(t, 0, 2000)
        syn(t, 0, 2001)
        t.stack.on("syn", lambda view: setattr(view, "evict", (view.peer[0], 2000)))
        syn(t, 0, 2002)
        t.swallow()
        assert {row["fport"] for row in t.stack.requests(t.listener)} == {2001, 2002}
        assert t.stack.pools()["requests"] == 2


# ---- queue full ----------------------------------------------------------------------------------------------------------------
def test_overflow_of_the_syn_queue():
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 0}) as t:
        seen = []

        @t.stack.on("overflow")
        def full(view):
            seen.append((view.queue, view.at, view.qlen, view.backlog))
            return {2001: "accept", 2002: "cookie", 2003: "drop"}.get(view.peer[1])

        for port in (2000, 2001, 2002):
            syn(t, 0, port)
            assert len(sent(t, port)) == 1
        assert t.stack.nstat()["TcpExtSyncookiesSent"] == 1
        t.line(f"0 2003 < S 0 win 65535 {OPTS} ! HOOK")
        t.line(f"0 2004 < S 0 win 65535 {OPTS} ! TCP_REQQFULL_DROP")
        assert t.half_open() == 2
        assert seen == [("syn", "syn", 1, 0), ("syn", "syn", 2, 0), ("syn", "syn", 2, 0), ("syn", "syn", 2, 0)]


def test_overflow_of_the_accept_queue():
    with Testbed(backlog=0) as t:
        at_ack = []

        @t.stack.on("overflow")
        def full(view):
            at_ack.append((view.queue, view.at, view.peer[1], view.accept_queue))
            return "accept" if view.peer[1] == 1002 else None

        t.connect(1001, 0)
        t.swallow()
        t.line(f"0 1004 < S 0 win 65535 {OPTS} ! TCP_LISTEN_OVERFLOW")
        t.connect(1002, 0)
        assert len(t.rows("ESTAB")) == 2
        assert at_ack == [("accept", "syn", 1004, 1), ("accept", "syn", 1002, 1), ("accept", "ack", 1002, 1)]


def test_overflow_at_the_third_ack_may_reset():
    with Testbed(backlog=0, sysctl={"net.ipv4.tcp_syncookies": 1}) as t:
        t.stack.on("overflow", lambda view: "reset" if view.at == "ack" else "accept")
        syn(t, 0, 1001)
        syn(t, 0, 1002)
        late = answer(t, 1002)
        first = answer(t, 1001)
        for port, packet in ((1001, first), (1002, late)):
            ts = options(packet)["Timestamp"][0]
            t.line(f"0.1 {port} < . 1 ack ={packet[TCP].seq + 1} win 512 <nop,nop,TS 1000 ={ts}>")
        assert "R" in answer(t, 1002)[TCP].flags
        assert len(t.rows("ESTAB")) == 1 and t.half_open() == 0


# ---- cookies ---------------------------------------------------------------------------------------------------------------------
def test_cookie_hooks_make_and_check_an_own_format():
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": 2}) as t:
        made, checked = [], []

        @t.stack.on("cookie_make")
        def make(view):
            made.append((view.mss, view.sack, view.wscale, view.seq))
            view.cookie = 0xC0000000 | view.wscale
            view.keeps_options = True

        @t.stack.on("cookie_check")
        def check(view):
            checked.append((hex(view.cookie), view.seq))
            if view.cookie >> 28 != 0xC:
                return "drop"
            view.mss, view.keeps_options, view.sack, view.wscale = 1460, True, True, view.cookie & 15

        no_ts = "<mss 1460,nop,nop,sackOK,nop,ws 9>"
        syn(t, 0, opts=no_ts)
        packet = answer(t)
        assert packet[TCP].seq == 0xC0000009
        assert "WScale" in options(packet) and "SAckOK" in options(packet), "kept without timestamps"
        t.line(f"0.1 < . 1 ack ={0xC000000A} win 512")
        assert (made, checked) == ([(1460, True, 9, 10000)], [("0xc0000009", 10000)])
        conn, _ = t.listener.accept()
        assert conn.getsockopt(6, 11, 8)[6] & 15 == 9, "tcp_info: the peer's scale"
        t.line("0.2 1001 < . 1 ack =5 win 512 ! TCP_FLAGS")
        assert "R" in answer(t, 1001)[TCP].flags
        assert t.stack.nstat()["TcpExtSyncookiesFailed"] == 1
        conn.close()
        t.swallow()


def test_cookie_hooks_that_take_no_stand_leave_linuxs_format():
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": 2}) as t:
        t.stack.on("cookie_make", lambda view: None)
        t.stack.on("cookie_check", lambda view: None)
        t.connect(1000, 0)
        assert len(t.rows("ESTAB")) == 1


# ---- requests --------------------------------------------------------------------------------------------------------------------
def test_synack_timer_drop_skip_and_next():
    with Testbed() as t:
        seen = []

        @t.stack.on("synack")
        def tick(view):
            seen.append((view.num_timeout, view.num_retrans, view.young, view.tries))
            view.next_ms = 500
            return {0: None, 1: "skip", 3: "drop"}.get(view.num_timeout)

        syn(t, 0)
        t.advance(20 * SECOND)
        assert [at for at, _ in sent(t)] == [0, 1.0, 2.0]
        assert seen == [(0, 0, 1, 5), (1, 1, 0, 5), (2, 1, 0, 5), (3, 2, 0, 5)]
        assert t.half_open() == 0


def test_synack_accept_outlives_the_tries():
    with Testbed(sysctl={"net.ipv4.tcp_synack_retries": 1}) as t:
        t.stack.on("synack", lambda view: "accept" if view.num_timeout < 3 else None)
        syn(t, 0)
        t.advance(60 * SECOND)
        assert [at for at, _ in sent(t)] == [0, 1, 3, 7]


def test_a_chosen_timeout_does_not_spoil_the_handshakes_times():
    with Testbed() as t:

        @t.stack.on("synack")
        def tick(view):
            view.next_ms = 4000
            return "skip"

        syn(t, 0, opts="<mss 1460>")
        packet = answer(t)
        t.advance(2 * SECOND)
        t.line(f"2.5 < . 1 ack ={packet[TCP].seq + 1} win 512")
        row = next(r for r in t.stack.dump() if r["kind"] == "sock")
        assert int.from_bytes(row["info"][68:72], "little") == 2_500_000, "srtt is the time since the only SYN-ACK"


def test_ack_drop_and_reset():
    with Testbed() as t:
        seen = []

        @t.stack.on("ack")
        def third(view):
            seen.append((view.peer[1], view.cookie, view.num_timeout))
            return {1001: "drop", 1002: "reset"}.get(view.peer[1])

        for port in (1001, 1002, 1003):
            syn(t, 0, port)
            packet = answer(t, port)
            line = f"0 {port} < . 1 ack ={packet[TCP].seq + 1} win 512 <nop,nop,TS 1000 ={options(packet)['Timestamp'][0]}>"
            t.line(line + (" ! HOOK" if port != 1003 else " ! taken"))
        assert "R" in answer(t, 1002)[TCP].flags
        assert [row["fport"] for row in t.stack.requests()] == [1001]
        assert t.stack.drops(t.listener) == {"HOOK": 2}
        assert seen == [(1001, False, 0), (1002, False, 0), (1003, False, 0)]
        assert t.stack.nstat()["TcpExtEmbryonicRsts"] == 1


@pytest.mark.parametrize(("verdict", "reset"), [("drop", False), ("reset", True)])
def test_ack_hook_sees_cookies_too(verdict, reset):
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": 2}) as t:
        seen = []
        t.stack.on("ack", lambda view: (seen.append(view.cookie), verdict)[1])
        syn(t, 0)
        packet = answer(t)
        t.line(f"0 < . 1 ack ={packet[TCP].seq + 1} win 512 <nop,nop,TS 1000 ={options(packet)['Timestamp'][0]}> ! HOOK")
        assert seen == [True]
        assert bool(sent(t)) == reset
        assert not t.rows("ESTAB")


# ---- failure ----------------------------------------------------------------------------------------------------------------------
def test_a_hook_that_raises_is_reported_once_counted_and_off(caplog):
    with Testbed() as t, caplog.at_level(logging.ERROR, "ustack.hooks"):

        def bad(view):
            view.isn = 5
            raise LookupError("no")

        hook = t.stack.on("syn", bad)
        good = t.stack.on("syn", lambda view: setattr(view, "mss", 999))
        for port in (1000, 1001):
            syn(t, 0, port)
            packet = answer(t, port)
            assert packet[TCP].seq != 5 and options(packet)["MSS"] == 999
        assert (hook.calls, hook.errors, hook.enabled, good.calls, good.errors) == (1, 1, False, 2, 0)
        (record,) = caplog.records
        assert "'syn'" in record.message and record.exc_info[0] is LookupError


@pytest.mark.parametrize(
    "wrong",
    [
        lambda view: "perhaps",
        lambda view: 1,
        lambda view: setattr(view, "mss", 70000),
        lambda view: setattr(view, "isn", "x"),
        lambda view: setattr(view, "peer", 1),
        lambda view: setattr(view, "evict", 1000),
        lambda view: view.nothing,
    ],
)
def test_a_choice_that_cannot_be_counts_as_an_error(wrong):
    with Testbed() as t:
        hook = t.stack.on("syn", wrong)
        syn(t, 0)
        assert options(answer(t))["MSS"] == 1460
        assert (hook.errors, hook.enabled) == (1, False)


def test_a_synchronous_hook_looks_but_does_not_act():
    with Testbed() as t:
        looked = []

        def look(view):
            looked.append((len(t.stack.requests()), t.stack.nstat()["TcpInSegs"], t.stack.drops(), t.listener.getsockname(), t.listener.poll()))
            t.stack.ss()

        fine = t.stack.on("syn", look)
        acts = [
            t.stack.on("syn", act)
            for act in (
                lambda view: t.listener.close(),
                lambda view: t.stack.inject(bytes(40)),
                lambda view: t.stack.run_until(t.clock.now + 1),
                lambda view: t.stack.on("syn", print),
            )
        ]
        syn(t, 0)
        t.swallow()
        assert fine.errors == 0 and looked == [(0, 1, {}, ("0.0.0.0", 80), 0)]
        assert [hook.errors for hook in acts] == [1, 1, 1, 1]
        syn(t, 0, 1001)
        t.swallow()
        assert t.half_open() == 2


def test_a_hook_removes_itself():
    with Testbed() as t:
        hook = t.stack.on("syn", lambda view: hook.remove())
        for port in (1000, 1001):
            syn(t, 0, port)
        t.swallow()
        assert hook.calls == 1


def test_remove_puts_linux_back_and_names_are_checked():
    with Testbed() as t:
        hook = t.stack.on("syn", lambda view: "drop")
        hook.remove()
        hook.remove()
        syn(t, 0)
        assert len(sent(t)) == 1
        with pytest.raises(ValueError, match=r"no hook 'sin'.*syn"):
            t.stack.on("sin", print)
        with pytest.raises(TypeError):
            t.stack.on("syn", 5)


def test_a_bare_engine_has_the_same_hooks():
    from examples.engine_by_hand import syn as bytes_of_syn

    engine = ustack.Engine("192.0.2.1/24", seed=1)
    listener = engine.socket()
    engine.bind(listener, "192.0.2.1", 80)
    engine.listen(listener, 128)
    engine.on("syn", lambda view: setattr(view, "isn", 4711))
    engine.receive(bytes_of_syn("192.0.2.2", "192.0.2.1", 40000, 80, 1000), now=0)
    ((_, packet),) = engine.transmit()
    assert ustack.parse(packet)["seq"] == 4711
