"""What the README and examples show is run: every command of its shell blocks, its Python blocks, the three examples, the demo."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text()
ENV = {**os.environ, "PYTHONPATH": str(TOP)}
is_root = os.geteuid() == 0
root = pytest.mark.root


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def lines(block: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


def run(*words: str, timeout: float = 120, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=TOP, env=ENV, capture_output=True, text=True, timeout=timeout, **kwargs)  # type: ignore[call-overload]


def ustack(words: str) -> list[str]:
    """`ustack ...` or `python -m ...` of the README with the Python that runs the tests."""
    first, *rest = words.split()
    return [sys.executable, "-m", "ustack", *rest] if first == "ustack" else [sys.executable, *rest]


def test_the_readme_has_the_blocks_these_tests_know():
    assert len(blocks("sh")) == 4
    assert len(blocks("python")) == 2


@pytest.mark.parametrize("command", [c for c in lines(blocks("sh")[3]) if "scenarios/" not in c])
def test_readme_command_against_linux(command):
    done = run(*ustack(command))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@root
@pytest.mark.skipif(not is_root, reason="needs root: a namespace")
@pytest.mark.timeout(300)
def test_readme_command_on_the_live_kernel():
    command = next(c for c in lines(blocks("sh")[3]) if "scenarios/" in c)
    done = run(*ustack(command), timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_readme_virtual_time_block():
    done = run(sys.executable, "-c", blocks("python")[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("b'hello' 1 ")


@pytest.mark.parametrize("name, says", [("engine_by_hand.py", "the request is gone: {'TcpExtTCPTimeouts': 6}"),
                                        ("two_stacks.py", "1048576 bytes in"),
                                        ("packetdrill_plugin.py", "280 bytes of tcp_info; close 0")])
def test_example_in_virtual_time(name, says):
    done = run(sys.executable, f"examples/{name}")
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.fixture
def netns(tmp_path):
    """netns/up as the README has it, under another name; gone afterwards."""
    ENV.update(USTACK_NETNS=f"ustack-test-{os.getpid()}", XDG_RUNTIME_DIR=str(tmp_path))
    tmp_path.chmod(0o700)
    try:
        for _ in range(2):                      # idempotent
            up = run("netns/up")
            assert up.returncode == 0, up.stderr
        yield
    finally:
        for _ in range(2):
            assert run("netns/down").returncode == 0


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(words, cwd=TOP, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@root
@pytest.mark.skipif(not is_root, reason="needs root: a namespace with a TUN device")
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_readme_server_block(netns):
    """serve, curl, ss, nstat: the commands of the README in their order, without sudo and with the Python that runs the tests."""
    commands = [c.removeprefix("sudo ") for c in lines(blocks("sh")[2])]
    assert commands[0] == "netns/up" and commands[-1] == "netns/down"
    server = None
    try:
        for command in commands[1:-1]:
            words = command.replace(".venv/bin/ustack", f"{sys.executable} -m ustack").replace("'", "").rstrip("& ").split()
            if "serve" in words:
                server = start(*words)
                assert server.stdout is not None
                assert any("http on 192.0.2.2" in line for line in server.stdout)
                continue
            done = run(*words)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            if "curl" in words:
                assert done.stdout == README
            elif "ss" in words:
                assert re.search(r"LISTEN\s+0\s+128\s+192\.0\.2\.2:80", done.stdout)
            elif "nstat" in words:
                assert "TcpExtListenDrops" in done.stdout
    finally:
        if server is not None:
            server.terminate()
            server.wait(20)


@root
@pytest.mark.skipif(not is_root, reason="needs root: a namespace with a TUN device")
def test_example_echo_on_tun(netns):
    server = start("netns/exec", sys.executable, "examples/echo_tun.py", "--connections", "1")
    try:
        assert server.stdout is not None
        assert "listening on" in server.stdout.readline()
        client = ("import socket; s = socket.create_connection(('192.0.2.2', 7), 10); s.sendall(b'echo me'); s.shutdown(1)\n"
                  "print(s.makefile().read())")
        done = run("netns/exec", sys.executable, "-c", client)
        assert done.stdout.strip() == "echo me", done.stderr
        assert server.wait(20) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


@root
@pytest.mark.skipif(not is_root, reason="needs root: a namespace with a TUN device")
@pytest.mark.skipif(not (TOP / ".venv" / ".ustack-installed").exists(), reason="the demo's environment is not set up here (scripts/test does it)")
@pytest.mark.timeout(300)
def test_demo_holds():
    done = run("scripts/demo", timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "demo: everything held" in done.stdout
