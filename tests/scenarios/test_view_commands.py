"""`ustack ss`, `nstat`, `netstat` and `sysctl` against a running stack, through its control socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ustack
from ustack.cli import main
from ustack.control import ControlServer

Run = Callable[..., Result]
TOP = Path(__file__).parents[2]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ustack.Stack]:
    """A listener with one connection, and a peer on the other side of a memory link."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("NSTAT_HISTORY", str(tmp_path / "history"))
    clock = ustack.VirtualClock()
    left, right = ustack.MemoryLink.pair()
    with ustack.Stack(left, "192.0.2.1/24", clock=clock, seed=1, name="one") as one:
        with ustack.Stack(right, "192.0.2.2/24", clock=clock, seed=2) as two:
            control = ControlServer(one)
            server = one.create_server(("192.0.2.1", 80), backlog=5)
            client = two.create_connection(("192.0.2.1", 80), source_address=("192.0.2.2", 5555))
            conn, _ = server.accept()
            try:
                yield one
            finally:
                control.close()
                for sock in (client, conn, server):
                    sock.close()


@pytest.fixture
def run(stack: ustack.Stack) -> Run:
    return lambda *words: CliRunner().invoke(main, list(words))


def test_ss(run: Run, stack: ustack.Stack) -> None:
    assert run("ss", "-ltn").output == stack.ss_text("-ltn") == (
        "State  Recv-Q Send-Q Local Address:Port Peer Address:PortProcess\n"
        "LISTEN 0      5          192.0.2.1:80        0.0.0.0:*          \n")
    assert run("ss", "-H", "-tn", "state", "established", "sport", "=", ":80").output == "0      0      192.0.2.1:80 192.0.2.2:5555\n"
    assert run("ss", "-Htna").output == "LISTEN 0      5      192.0.2.1:80   0.0.0.0:*   \nESTAB  0      0      192.0.2.1:80 192.0.2.2:5555\n"
    assert run("ss", "-tnp").output.count("users:((") == 1
    assert run("ss", "-s").output.startswith("Total: 2\nTCP:   2 (estab 1, closed 0, orphaned 0, timewait 0)\n\nTransport Total     IP        IPv6\n")
    rows = json.loads(run("ss", "-ltnj").output)
    assert rows == [{"state": "LISTEN", "recvq": 0, "sendq": 5, "local": "192.0.2.1:80", "peer": "0.0.0.0:*"}]
    assert run("ss", "-tn", "state", "syn-recv").output == "Recv-Q Send-Q Local Address:Port Peer Address:PortProcess\n"


def test_nstat_keeps_a_history(run: Run, tmp_path: Path) -> None:
    first = run("nstat").output
    assert first.startswith("#kernel\n") and "TcpPassiveOpens                 1                  0.0\n" in first
    assert (tmp_path / "history").read_text() == first
    assert run("nstat").output == "#kernel\n", "nothing has changed since"
    assert run("nstat", "-az", "TcpExtListen*").output == (
        "#kernel\nTcpExtListenOverflows           0                  0.0\nTcpExtListenDrops               0                  0.0\n")
    assert run("nstat", "-a", "TcpExtListen*").output == "#kernel\n", "zeros on request only"
    assert "TcpPassiveOpens" in run("nstat", "-rs").output
    assert run("nstat", "-n").output == ""
    assert json.loads(run("nstat", "-aj", "TcpPassive*").output) == {"kernel": {"TcpPassiveOpens": 1}}
    assert run("nstat", "-ajp", "TcpPassive*").output == '{\n    "kernel": {\n        "TcpPassiveOpens": 1\n    }\n}\n'
    assert "CurrEstab" not in run("nstat", "-az").output, "levels are no counters"


def test_nstat_distrusts_a_strange_history(run: Run, tmp_path: Path) -> None:
    (tmp_path / "history").write_text("#other\nTcpPassiveOpens 1 0.0\n")
    said = run("nstat").output
    assert "history is stale" in said and "TcpPassiveOpens" in said
    (tmp_path / "history").write_text("#kernel\nTcpPassiveOpens 7 0.0\n")
    assert "TcpPassiveOpens                 1" in run("nstat").output, "the stack was started anew"
    (tmp_path / "history").unlink()
    (tmp_path / "elsewhere").write_text("#kernel\nTcpPassiveOpens 1 0.0\n")
    (tmp_path / "history").symlink_to(tmp_path / "elsewhere")
    assert "TcpPassiveOpens" in run("nstat").output
    assert not (tmp_path / "history").is_symlink() and (tmp_path / "elsewhere").read_text().startswith("#kernel\nTcpPassiveOpens 1 ")


def test_netstat(run: Run) -> None:
    assert run("netstat", "-ant").output == (
        "Active Internet connections (servers and established)\n"
        "Proto Recv-Q Send-Q Local Address           Foreign Address         State      \n"
        "tcp        0      0 192.0.2.1:80            0.0.0.0:*               LISTEN     \n"
        "tcp        0      0 192.0.2.1:80            192.0.2.2:5555          ESTABLISHED\n")
    assert "PID/Program name" in run("netstat", "-antp").output
    assert "off (0.00/0/0)" in run("netstat", "-anto").output
    assert run("netstat", "-tln").output.count("tcp ") == 1
    assert run("netstat", "-an").output.endswith("Proto RefCnt Flags       Type       State         I-Node   Path\n")
    statistics = run("netstat", "-s").output
    assert "    1 passive connection openings\n" in statistics and statistics.startswith("Ip:\n    Forwarding: 2\n")
    assert json.loads(run("netstat", "-sj").output)["TcpPassiveOpens"] == 1
    assert [r["state"] for r in json.loads(run("netstat", "-antj").output)] == ["LISTEN", "ESTABLISHED"]
    assert run("netstat", "-q").exit_code == 2


def test_sysctl(run: Run) -> None:
    assert run("sysctl", "net.ipv4.tcp_rmem").output == "net.ipv4.tcp_rmem = 4096\t131072\t33554432\n"
    assert run("sysctl", "-n", "net.ipv4.tcp_sack", "net/ipv4/tcp_fin_timeout").output == "1\n60\n"
    assert run("sysctl", "/proc/sys/net/ipv4/tcp_sack").output == "net.ipv4.tcp_sack = 1\n"
    assert run("sysctl", "-w", "net.ipv4.tcp_sack=0").output == "net.ipv4.tcp_sack = 0\n"
    assert run("sysctl", "net.ipv4.tcp_rmem=4096 5000 6000").output == "net.ipv4.tcp_rmem = 4096\t5000\t6000\n"
    assert run("sysctl", "-qw", "net.ipv4.tcp_sack=1").output == ""
    assert run("sysctl", "-N", "net.ipv4.tcp_sack").output == "net.ipv4.tcp_sack\n"
    assert run("sysctl", "-b", "net.ipv4.tcp_sack").output == "1"
    assert run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1").exit_code == 0
    everything = run("sysctl", "-a").output.splitlines()
    assert len(everything) > 100 and all(" = " in line for line in everything) and everything == sorted(everything)
    assert run("sysctl", "-a", "-r", "tcp_syn_r").output == "net.ipv4.tcp_syn_retries = 6\n"
    assert "net.ipv4.conf.all.accept_redirects = 1" in run("sysctl", "net.ipv4.conf.all").output.splitlines()
    assert json.loads(run("sysctl", "-j", "net.ipv4.tcp_sack").output) == {"net.ipv4.tcp_sack": "1"}


def test_sysctl_that_can_only_be_written(run: Run) -> None:
    assert run("sysctl", "-w", "net.ipv4.route.flush=1").output == "net.ipv4.route.flush = 1\n"
    bad = run("sysctl", "net.ipv4.route.flush")
    assert bad.exit_code == 1 and bad.output == 'sysctl: reading key "net.ipv4.route.flush": Permission denied\n'


def test_sysctl_refusals(run: Run, tmp_path: Path) -> None:
    bad = run("sysctl", "net.ipv4.nonsense", "net.ipv4.tcp_sack")
    assert bad.exit_code == 1 and bad.output == (
        "sysctl: cannot stat /proc/sys/net/ipv4/nonsense: No such file or directory\nnet.ipv4.tcp_sack = 1\n")
    assert run("sysctl", "-e", "net.ipv4.nonsense").exit_code == 0
    bad = run("sysctl", "-w", "net.ipv4.tcp_sack=9999")
    assert bad.exit_code == 1 and bad.output == 'sysctl: setting key "net.ipv4.tcp_sack": Invalid argument\n'
    assert run("sysctl", "-w", "net.ipv4.tcp_sack").exit_code == 1
    assert run("sysctl", "-w", "net.ipv4.tcp_available_congestion_control=x").exit_code == 1
    assert run("sysctl").exit_code == 2
    settings = tmp_path / "settings.conf"
    settings.write_text("# comment\n\nnet.ipv4.tcp_sack = 0\n; other comment\nnet.ipv4.tcp_fin_timeout=30\n")
    assert run("sysctl", "-p", str(settings)).output == "net.ipv4.tcp_sack = 0\nnet.ipv4.tcp_fin_timeout = 30\n"


def test_queues(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("queues").output == (
        "Listener      Half-open  Young  Peak  Accept  Limit  Peak  SYNs  Accepted  Overflows  SYN-q full  Cookies  Bad  Drops\n"
        "192.0.2.1:80          0      0     1       0      5     1     1         1          0           0      0/0    0      0\n")
    (queue,) = json.loads(run("queues", "-j").output)
    assert queue["limit"] == 5 and queue["local"] == ["192.0.2.1", 80] and queue["half_open_peak"] == 1
    pauses: list[float] = []
    monkeypatch.setattr("ustack.cli.queues.time.sleep", pauses.append)
    assert run("queues", "-w", "-c", "3", "-i", "0.05").output.count("Listener") == 3 and pauses == [0.05, 0.05]


def test_no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for words in (["ss", "-tan"], ["ss", "-s"], ["nstat"], ["netstat", "-s"], ["sysctl", "-a"], ["sysctl", "net.ipv4.tcp_sack"], ["queues"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 1 and "no stack of yours is running" in result.output, words


@pytest.mark.parametrize("command", ["ss -tan", "netstat -s", "nstat -az", "sysctl -a"])
def test_a_closed_pipe_ends_quietly(stack: ustack.Stack, command: str) -> None:
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m ustack {command} | head -1"], cwd=TOP, capture_output=True, text=True, timeout=30)
    assert done.stdout.count("\n") == 1 and not done.stderr
