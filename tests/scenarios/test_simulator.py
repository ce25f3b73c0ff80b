"""The simulator's oracle over many seeds: no stuck connection, no leak, no lost or invented byte."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from ustack.sim import run
from ustack.sim.peer import Mismatch, Peer


@pytest.mark.parametrize("first", range(0, 150, 25))
def test_seeds_hold(first):
    faults = {seed: fault for seed in range(first, first + 25) if (fault := run(seed).fault)}
    assert not faults


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, 10000, 1250))
def test_ten_thousand_seeds_hold(first):
    faults = {seed: fault for seed in range(first, first + 1250) if (fault := run(seed).fault)}
    assert not faults


def test_the_plans_reach_the_rare_paths():
    total = sum((run(seed).counters for seed in range(150, 210)), Counter())
    rare = ("TcpExtTCPFastOpenActive", "TcpExtTCPFastOpenPassive", "IcmpInDestUnreachs", "TcpExtTCPWantZeroWindowAdv", "TcpExtTCPKeepAlive",
            "TcpExtSyncookiesRecv", "TcpExtTCPTimeouts", "TcpExtTCPLossProbes", "TcpExtTCPSackRecovery", "TcpExtTCPRenoRecovery",
            "TcpExtTCPAbortOnData", "TcpExtTCPMTUPSuccess", "TcpExtTCPWinProbe", "TcpExtTCPDSACKRecv", "TcpExtTCPChallengeACK",
            "TcpExtPAWSEstab", "TcpExtTCPRcvCollapsed", "TcpInCsumErrors")
    assert not [name for name in rare if not total[name]]


def test_one_seed_is_one_run():
    assert [run(3).digest for _ in range(2)] == [run(3).digest] * 2
    assert run(3).digest != run(4).digest


def test_a_seed_does_not_hang_on_the_hash_seed():
    code = "from ustack.sim import run; print(run(5).digest, run(6).digest)"
    outputs = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                              capture_output=True, text=True, check=True).stdout for seed in ("1", "2")}
    assert len(outputs) == 1


def test_the_oracle_sees_a_wrong_byte(monkeypatch):
    """One byte altered between the engine and the application must be a fault."""
    original = Peer._read

    def tampered(self):
        recv = self.sock.recv
        self.sock.recv = lambda *args: (lambda d: bytes([d[0] ^ 1]) + d[1:] if d and self.got == 0 else d)(recv(*args))
        try:
            return original(self)
        finally:
            del self.sock.recv

    monkeypatch.setattr(Peer, "_read", tampered)
    assert any("are not those that were sent" in (run(seed).fault or "") for seed in range(5))
    assert Mismatch.__mro__[1] is AssertionError
