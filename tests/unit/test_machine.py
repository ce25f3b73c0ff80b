"""`ustack doctor`: what is found, what is said to do about it, and the exit code."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from ustack import machine
from ustack.cli import main


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> dict[int, str | None]:
    """What trying with these unshare flags says (None: it works); nothing is really tried."""
    said: dict[int, str | None] = {machine._NEWNET: None, machine._NEWUSER | machine._NEWNET: None}
    monkeypatch.setattr(machine, "_try", lambda flags, path: said[flags])
    return said


def test_one_way_is_enough(tries: dict[int, str | None], tmp_path: Path) -> None:
    node = tmp_path / "tun"
    node.touch()
    assert CliRunner().invoke(main, ["doctor", "--tun-node", str(node)]).exit_code == 0
    tries[machine._NEWNET] = "unshare: Operation not permitted"
    result = CliRunner().invoke(main, ["doctor", "--tun-node", str(node)])
    assert result.exit_code == 0 and "no  TUN device as you are: unshare: Operation not permitted" in result.output
    assert "fix: run as root, or setcap cap_net_admin+ep" in result.output and "A stack can run on a device here." in result.output
    tries[machine._NEWUSER | machine._NEWNET] = "unshare: No space left on device"
    result = CliRunner().invoke(main, ["doctor", "--tun-node", str(node), "-j"])
    answer = json.loads(result.output)
    assert result.exit_code == 3 and answer["ready"] is False
    assert all(check["fix"] for check in answer["checks"] if not check["ok"])


@pytest.mark.parametrize("name, value, fix", [
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"), ("user/max_user_namespaces", "0", "user.max_user_namespaces"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"), ("none", "", "run as root"),
])
def test_why_there_are_no_user_namespaces(tries: dict[int, str | None], monkeypatch: pytest.MonkeyPatch, name: str, value: str, fix: str) -> None:
    tries[machine._NEWUSER | machine._NEWNET] = "unshare: Operation not permitted"
    monkeypatch.setattr(machine, "_sysctl", {name: value}.get)
    assert fix in machine._userns("/dev/net/tun").fix


def test_the_node(tries: dict[int, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = machine._node(str(tmp_path / "tun"))
    assert not missing.ok and "mknod" in missing.fix
    assert "TUN node first" in machine.examine(str(tmp_path / "tun"))[2].fix or machine._try(machine._NEWNET, "") is None
    (tmp_path / "tun").touch()
    monkeypatch.setattr(os, "access", lambda *a: False)
    closed = machine._node(str(tmp_path / "tun"))
    assert not closed.ok and "chmod 666" in closed.fix


def test_raw_and_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    assert "cap_net_raw" in machine._raw().fix
    monkeypatch.setattr(machine.shutil, "which", lambda tool: None)
    assert "apt-get install iproute2" in machine._tools().fix


@pytest.mark.root
def test_for_real() -> None:
    """Where the other tests with devices run, the doctor finds a way; without the node it does not."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        pytest.skip("not root, or no /dev/net/tun")
    assert machine.can_run(machine.examine())
    assert not machine.can_run(machine.examine("/nonexistent/tun"))
