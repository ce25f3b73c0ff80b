"""The three worked examples of hooks do what they say, and their hooks make the difference."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.kit.testbed import Testbed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import backlog_policy  # noqa: E402
import own_cookie  # noqa: E402
import synack_rto  # noqa: E402


def test_own_cookie_keeps_sack_and_scale_without_timestamps():
    assert own_cookie.options_after_a_cookie(own=False) == (False, 0, 1460)
    assert own_cookie.options_after_a_cookie(own=True) == (True, 10, 1460)


@pytest.mark.parametrize("flip", [0, 1 << 20, 1 << 21, 1 << 22, 1 << 26, 1 << 29])
def test_own_cookie_is_refused_when_any_field_is_changed(flip):
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": 2}) as t:
        cookie = own_cookie.OwnCookie(t.stack, b"key")
        cookie.install()
        t.line("0 < S 0 win 65535 <mss 1220,nop,nop,sackOK,nop,ws 7>")
        packet = t.flow(1000).out[0][1]
        t.swallow()
        t.line(f"0.1 < . 1 ack ={(packet.seq ^ flip) + 1 & 0xFFFFFFFF} win 512")
        assert (cookie.good, cookie.bad) == ((1, 0) if flip == 0 else (0, 1))
        t.swallow()


@pytest.mark.parametrize(("later", "good"), [(60, True), (110, True), (129, False)])
def test_own_cookie_ages(later, good):
    with Testbed(sysctl={"net.ipv4.tcp_syncookies": 2}) as t:
        cookie = own_cookie.OwnCookie(t.stack, b"key")
        cookie.install()
        t.line("0 < S 0 win 65535 <mss 1460>")
        packet = t.flow(1000).out[0][1]
        t.swallow()
        if later > 110:
            t.line(f"{later - 20} 1001 < S 0 win 65535 <mss 1460>")     # cookies stay believed (facts F6)
            t.swallow()
        t.line(f"{later} < . 1 ack ={packet.seq + 1} win 512")
        assert (cookie.good, cookie.bad) == ((1, 0) if good else (0, 1))
        t.swallow()


def test_random_early_drop_serves_honest_clients_that_linux_turns_away():
    assert backlog_policy.honest_clients_served(False) <= 2
    assert backlog_policy.honest_clients_served(True) >= 18


def test_own_synack_timeout():
    assert synack_rto.synacks("192.0.2.7") == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert synack_rto.synacks("198.51.100.7") == [0, 1, 3, 7, 15, 31]


@pytest.mark.parametrize("name", ["own_cookie", "backlog_policy", "synack_rto"])
def test_the_scripts_print_both_sides(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 2
