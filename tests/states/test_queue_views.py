"""stack.requests() and stack.queues(): each half-open connection, both queues of each listener."""

from __future__ import annotations

from tests.kit.testbed import Testbed

LINUX = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"
DEFER_ACCEPT = 9
S = 10**9


def test_a_request_from_its_syn_to_its_end() -> None:
    with Testbed() as t:
        t.run(f"0 1000 < S 0 {LINUX} ! taken\n0 1000 > S. 0 ack 1")
        (one,) = t.stack.requests(t.listener)
        assert (one["age_ns"], one["num_retrans"], one["num_timeout"], one["young"], one["waits_for"]) == (0, 0, 0, True, "ACK")
        assert one["timer_expires_ns"] == S
        assert (one["mss"], one["wscale"], one["sack"], one["timestamps"], one["ecn"]) == (1460, (7, 10), True, True, False)
        assert one["local"] == ("192.0.2.1", 80) and one["peer"][1] == 1000
        for due, timeouts in ((1, 1), (3, 2), (7, 3)):
            t.run(f"{due} 1000 > S. 0 ack 1")
            t.advance(due * S + S // 2)
            (one,) = t.stack.requests(t.listener)
            assert (one["age_ns"], one["num_timeout"], one["num_retrans"], one["young"]) == (due * S + S // 2, timeouts, timeouts, False)
            assert one["age_ns"] + one["timer_expires_ns"] == (2 * due + 1) * S
        t.run("15 1000 > S. 0 ack 1\n31 1000 > S. 0 ack 1")
        t.advance(64 * S)
        assert t.stack.requests(t.listener) == []


def test_options_that_the_client_did_not_send() -> None:
    with Testbed() as t:
        t.run("0 1000 < S 0 ! taken\n0 1000 > S. 0 ack 1\n0.5 1001 < S 0 <mss 1000> ! taken\n0.5 1001 > S. 0 ack 1")
        old, new = t.stack.requests()
        assert (old["mss"], old["wscale"], old["sack"], old["timestamps"]) == (536, None, False, False)
        assert new["mss"] == 1000 and (old["age_ns"], new["age_ns"]) == (S // 2, 0), "the oldest first"


def test_what_a_request_waits_for() -> None:
    third = "< . 1 ack 1 win 1000 <nop,nop,TS 1001 0>"
    with Testbed(backlog=1) as t:
        t.run(f"0 1000 < S 0 {LINUX} ! taken\n0 1000 > S. 0 ack 1\n0 1000 {third}")
        t.run("\n".join(f"0 {port} < S 0 {LINUX} ! taken\n0 {port} > S. 0 ack 1" for port in (1001, 1002)))
        t.run(f"0.1 1001 {third}\n0.1 1002 {third}")
        (one,) = t.stack.requests()
        assert one["waits_for"] == "accept queue" and one["peer"][1] == 1002
        (queue,) = t.stack.queues()
        assert (queue["half_open"], queue["accept"], queue["limit"], queue["overflows"], queue["drops"]) == (1, 2, 1, 1, 2)
    with Testbed() as t:
        t.listener.setsockopt(6, DEFER_ACCEPT, 5)
        t.run(f"0 1000 < S 0 {LINUX} ! taken\n0 1000 > S. 0 ack 1\n0.1 1000 < . 1 ack 1 win 1000 <nop,nop,TS 1001 0>")
        assert t.stack.requests()[0]["waits_for"] == "data"


def test_requests_of_one_listener() -> None:
    with Testbed() as t:
        t.run(f"0 1000 < S 0 {LINUX} ! taken\n0 1000 > S. 0 ack 1")
        other = t.stack.create_server(("0.0.0.0", 9999))
        assert t.stack.requests(other) == [] and len(t.stack.requests(t.listener)) == 1
        assert [q["local"][1] for q in t.stack.queues()] == sorted({t.listener.getsockname()[1], 9999})
        other.close()


def test_queues_count_peaks() -> None:
    with Testbed(backlog=5) as t:
        for port in range(1000, 1004):
            t.run(f"0 {port} < S 0 {LINUX} ! taken\n0 {port} > S. 0 ack 1")
        t.run("0.1 1000 < . 1 ack 1 win 1000 <nop,nop,TS 1001 0>\n0.1 1001 < . 1 ack 1 win 1000 <nop,nop,TS 1001 0>")
        (queue,) = t.stack.queues()
        assert (queue["half_open"], queue["young"], queue["half_open_peak"], queue["accept"], queue["accept_peak"]) == (2, 2, 4, 2, 2)
        assert (queue["syns"], queue["limit"], queue["overflows"], queue["drops"]) == (4, 5, 0, 0)
        conn, _ = t.listener.accept()
        assert t.stack.queues()[0]["accept"] == 1 and t.stack.queues()[0]["accepted"] >= 1
        conn.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")     # SO_LINGER 0: no FIN to wait for
        conn.close()
        t.run("0.1 1000 > R. 1 ack 1")
