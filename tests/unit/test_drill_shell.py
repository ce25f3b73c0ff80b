"""The small shell and the commands: what runs, what it says, and that nothing unknown passes."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from ustack.drill.commands import DEFAULTS, Commands
from ustack.drill.options import UnsupportedError
from ustack.drill.port import Port
from ustack.drill.shell import Shell, arithmetic, parse
from ustack.observe import ss


class Clock:
    now = 0


class Sysctls(dict[str, Any]):
    """Knows the names it was made with."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if value == "bad":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        super().__setitem__(name, value)

    def __missing__(self, name: str) -> Any:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


class FakeStack:
    clock = Clock()

    def __init__(self) -> None:
        names = {f"net.ipv4.{name}": "0" for name in DEFAULTS}
        self.sysctl = Sysctls({**names, "net.core.somaxconn": "4096",
                               "/sys/module/tcp_cubic/parameters/hystart_detect": "3"})
        self.counters = {"TcpExtBeyondWindow": 5, "TcpInSegs": 9}
        ends = {"laddr": "192.0.2.1", "lport": 80, "faddr": "192.0.2.2", "fport": 5}
        self.dump = [{"kind": "req", "state": s, "recvq": 0, "sendq": 1, **ends} for s in (10, 3, 3, 6, 1)]
        self.said: list[Any] = []

    def take(self) -> list[Any]:
        return []

    def nstat(self) -> dict[str, int]:
        return dict(self.counters)

    def ss_text(self, args: str = "-tan") -> str:
        return ss.text(self.dump, args)

    def route(self, text: str) -> None:
        if "nonsense" in text:
            raise OSError(errno.EINVAL, "not understood")
        self.said.append(text)

    def link(self, mtu: int | None = None, **settings: Any) -> None:
        self.said.append((mtu, settings))

    def tcp_metrics_flush(self) -> None:
        self.said.append("metrics")


@pytest.fixture
def stack() -> FakeStack:
    return FakeStack()


@pytest.fixture
def shell(stack: FakeStack) -> Shell:
    return Shell(Commands(Port(stack)))  # type: ignore[arg-type]


def out(shell: Shell, text: str) -> str:
    result = shell.run(text)
    assert result.status == 0, result
    return result.out


# --- the shell itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("echo a  b", "a b\n"),
    ("echo -n 'a  b'", "a  b"),
    ('echo "a\\"b" c\\ d', 'a"b c d\n'),
    ("echo a # said nothing", "a\n"),
    ("echo a#b", "a#b\n"),
    ("echo a; echo b\necho c", "a\nb\nc\n"),
    ("echo a \\\n  b \\", "a b\n"),
    ("false || echo or; true && echo and; true || echo never", "or\nand\n"),
    ("echo $((32*1024*1024)) $((1+2*3)) $((7/2)) $((-7/2)) $((-7%2)) $((1<<4))", "33554432 7 3 -3 -1 16\n"),
    ('echo "x $((2 * 3)) y"', "x 6 y\n"),
    ("X=5; echo $X ${X} '$X' $((X_not_set + 1))".replace(" $((X_not_set + 1))", ""), "5 5 $X\n"),
    ("N=4; echo $(($N*2))", "8\n"),
    ("echo one > /dev/null; echo two", "two\n"),
    ("echo a | cat | cat -", "a\n"),
    ("printf 'a\\nb\\n' | wc -l", "2\n"),
    ("printf 'a\\nb\\nc\\n' | head -n 2 | tail -1", "b\n"),
    ("cat nothing 2>/dev/null || true".replace("cat nothing", "sysctl -n net.ipv4.nope"), ""),
])
def test_words_and_operators(shell: Shell, text: str, expected: str) -> None:
    assert out(shell, text) == expected


def test_status_is_the_last_commands(shell: Shell) -> None:
    assert shell.run("false; true").status == 0
    assert shell.run("true; false").status == 1
    assert shell.run("true | false").status == 1
    assert shell.run("false | true").status == 0
    assert shell.run("").status == 0


def test_errors_go_where_they_are_sent(shell: Shell) -> None:
    assert "cannot stat" in shell.run("sysctl -n net.ipv4.nope").err
    assert shell.run("sysctl -n net.ipv4.nope 2>/dev/null").err == ""
    assert "cannot stat" in shell.run("sysctl -n net.ipv4.nope 2>&1 | cat").out


@pytest.mark.parametrize("text", [
    "frobnicate", "echo $(date)", "if true; then echo; fi", "for i in 1; do :; done", "echo a &", "(echo a)",
    "echo 'a", 'echo "a', "echo $((1+", "echo $((a b))", "echo $((1/0))", "echo >", "| echo", "&& echo",
                                  "echo ${a:-b}",
    "echo $?", "./some_tool --fast", "cat /etc/passwd", "echo 1 > /tmp/file", "awk '{print}'",
                                  "dd if=/dev/zero",
    "python3 -c 'x'", "! true", "sysctl -a", "ip addr show", "ip -6 route add x",
                                  "tc qdisc add dev tun0 root tbf rate 1mbit",
    "ethtool -K tun0 tso maybe", "ethtool -k tun0", "nstat -j", "nstat Tcp*", "ss state nowhere",
    "ss -x", "grep -r x", "grep a b", "wc", "wc -L", "tc qdisc add dev tun0 root pfifo limit x", "head -c 3",
    "cat -v", "ethtool -K tun0 frob off", "printf %s x", "set_sysctls.py nothing",
                                  "ip link set dev tun0 txqueuelen 5",
])
def test_what_is_not_understood_is_said(shell: Shell, text: str) -> None:
    with pytest.raises(UnsupportedError):
        shell.check(text)
        shell.run(text)


def test_check_finds_unknown_commands_before_anything_runs(shell: Shell, stack: FakeStack) -> None:
    with pytest.raises(UnsupportedError, match="unknown command: launch it now"):
        shell.check("sysctl -q net.core.somaxconn=1; launch it now")
    assert stack.sysctl["net.core.somaxconn"] == "4096"


def test_arithmetic_refuses_everything_else() -> None:
    for text in ("__import__('os')", "1 if 2 else 3", "[1]", "1.5", "'a'*9"):
        with pytest.raises(UnsupportedError):
            arithmetic(text)


def test_parse_keeps_the_glue() -> None:
    assert [p.glue for p in parse("a && b || c; d\n\n e ; ")] == [";", "&&", "||", ";", ";"]


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../common/defaults.sh", "./defaults.sh", "../../defaults.sh",
                                  "/a/b/defaults.sh"])
def test_defaults(shell: Shell, stack: FakeStack, path: str) -> None:
    assert shell.run(path).status == 0
    assert stack.sysctl["net.ipv4.tcp_rmem"] == "4096 540000 15728640"
    assert stack.sysctl["net.ipv4.tcp_fastopen_key"] == "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4"
    assert stack.said == ["metrics"]


def test_sysctl_in_its_forms(shell: Shell, stack: FakeStack) -> None:
    assert out(shell, "sysctl -q net.ipv4.tcp_ecn=1  # on") == ""
    assert out(shell, "sysctl -w net/ipv4/tcp_sack=0") == "net.ipv4.tcp_sack = 0\n"
    assert out(shell, 'sysctl -q net.ipv4.tcp_rmem="4096 131072 $((32*1024*1024))"') == ""
    assert stack.sysctl["net.ipv4.tcp_rmem"] == "4096 131072 33554432"
    assert out(shell, "sysctl net.ipv4.tcp_ecn") == "net.ipv4.tcp_ecn = 1\n"
    assert out(shell, "sysctl -n net.ipv4.tcp_ecn") == "1\n"
    assert shell.run("sysctl -q net.ipv4.no_such_thing=1").status == 255
    assert shell.run("sysctl -q net.ipv4.tcp_ecn=bad").status == 255


def test_set_sysctls_and_restore(shell: Shell, stack: FakeStack) -> None:
    assert out(shell, "../../common/set_sysctls.py /proc/sys/net/ipv4/tcp_timestamps=0\\\n"
                      "   /proc/sys/net/ipv4/tcp_ecn=2\\") == ""
    assert (stack.sysctl["net.ipv4.tcp_timestamps"], stack.sysctl["net.ipv4.tcp_ecn"]) == ("0", "2")
    assert out(shell, "/tmp/sysctl_restore_${PPID}.sh") == ""
    assert shell.run("set_sysctls.py /proc/sys/net/ipv4/nope=0").status == 255


def test_files_of_proc_and_of_the_cubic_module(shell: Shell, stack: FakeStack) -> None:
    assert out(shell, "echo 2 > /proc/sys/net/ipv4/tcp_ecn; cat /proc/sys/net/ipv4/tcp_ecn") == "2\n"
    out(shell, "echo 0 > /sys/module/tcp_cubic/parameters/hystart_detect")
    assert stack.sysctl["/sys/module/tcp_cubic/parameters/hystart_detect"] == "0"
    assert shell.run("echo 1 > /proc/sys/net/ipv4/nope").status != 0


def test_ip(shell: Shell, stack: FakeStack) -> None:
    out(shell, "ip route change 192.0.2.1 via 192.168.0.2 dev tun0 advmss 600 mtu lock 640 initcwnd 11")
    out(shell, "ip tcp_metrics flush all")
    out(shell, "ip link set dev tun0 mtu 1400")
    assert stack.said == ["change 192.0.2.1 via 192.168.0.2 dev tun0 advmss 600 mtu lock 640 initcwnd 11",
                          "metrics",
                          (1400, {})]
    assert shell.run("ip route add nonsense").status == 2


def test_tc_and_ethtool(shell: Shell, stack: FakeStack) -> None:
    out(shell, "tc qdisc delete dev tun0 root 2>/dev/null ; tc qdisc add dev tun0 root pfifo limit 0")
    out(shell, "tc qdisc replace dev tun0 root handle 1: pfifo limit 1000")
    out(shell, "ethtool -K tun0 gso off tso off")
    out(shell, "ethtool -K tun0 gso on")
    out(shell, "ethtool -K tun0 tso on gro off")
    assert [s for _, s in stack.said] == [{"refuse": False}, {"refuse": True}, {"refuse": False}] + [
        {"super_segments": False}] * 3 + [{"super_segments": True}]


def test_a_scheduler_that_does_not_exist(shell: Shell) -> None:
    """As on a kernel without its module: what follows in the same command goes on."""
    result = shell.run("tc qdisc replace dev tun0 root fq")
    assert result.status == 2 and "unknown" in result.err
    assert shell.run("tc qdisc add dev tun0 root netem delay 1ms; true").status == 0


# --- looking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "status"), [
    ("ss -Htan state syn-recv | wc -l | grep -qx 2", 0),
    ("ss -Htan state syn-recv | wc -l | grep -qx 1", 1),
    ("ss -Htan state time-wait | wc -l | grep -qx 1", 0),
    ("ss -Htan state close-wait | wc -l | grep -qx 0", 0),
    ("ss -tan | wc -l | grep -qx 6", 0),
    ("ss -Htn | wc -l | grep -qx 1", 0),
    ("ss -Htln | grep -q LISTEN", 0),
    ("ss -Htan state connected exclude established | wc -l | grep -qx 3", 0),
    ("ss -Htan | grep -c ESTAB | grep -qx 1", 0),
])
def test_ss(shell: Shell, text: str, status: int) -> None:
    assert shell.run(text).status == status


def test_nstat_counts_since_last_time(shell: Shell, stack: FakeStack) -> None:
    assert out(shell, "nstat -n") == ""
    assert shell.run('nstat | grep TcpExtBeyondWindow | grep -q " 3 "').status == 1
    stack.counters["TcpExtBeyondWindow"] += 3
    assert shell.run('nstat -s | grep TcpExtBeyondWindow | grep -q " 3 "').status == 0
    assert shell.run('nstat | grep TcpExtBeyondWindow | grep -q " 3 "').status == 0
    assert shell.run('nstat | grep TcpExtBeyondWindow').status == 1
    assert "TcpExtBeyondWindow              8 " in out(shell, "nstat -a TcpExtBeyondWindow")
    assert "TcpInSegs                       0 " in out(shell, "nstat -z")


@pytest.mark.parametrize(("text", "status"), [
    ("echo abc | grep b", 0), ("echo abc | grep -x b", 1), ("echo abc | grep -v b", 1),
                                              ("echo ABC | grep -i b", 0),
    ("echo a+c | grep 'a+c'", 0), ("echo aac | grep 'a+c'", 1), ("echo aac | grep -E '^a+c$'", 0),
    ("echo aac | grep 'a\\+c'", 0), ("echo a.c | grep -F a.c", 0), ("echo abc | grep -F a.c", 1),
    ("echo abcd | grep -w abc", 1), ("echo 'abc d' | grep -w abc", 0),
                                              ("echo ab | grep '[[:alpha:]]' || true", 0),
    ("echo ac | grep 'a[bc]'", 0), ("echo abc | egrep 'x|b'", 0), ("echo abc | grep 'x\\|b'", 0),
    ("echo abc | grep -o b | grep -qx b", 0), ("echo abc | grep -e b", 0),
])
def test_grep(shell: Shell, text: str, status: int) -> None:
    if "[:" in text:
        with pytest.raises(UnsupportedError):
            shell.run(text)
    else:
        assert shell.run(text).status == status
