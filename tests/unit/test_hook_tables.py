"""C op-tables (core/hooks.pxd) from another extension, tests/_hookops.pyx: each op changes a packet or a result."""

import pytest
from scapy.all import TCP

from tests.kit.testbed import Testbed

hookops = pytest.importorskip("tests._hookops", reason="built with USTACK_CTEST=1")

OPTS = "<mss 1460,sackOK,TS 1000 0,nop,ws 7>"


def packets(t, port=1000):
    t.collect()
    out = [(at / 1e9, p) for at, p in t.flow(port).out]
    t.flow(port).out.clear()
    return out


@pytest.fixture
def bed(request):
    with Testbed() as t:
        yield t
        t.stack.set_hooks(None)
        t.swallow()


def install(t, *names, **kw):
    ops = hookops.Ops(*names, **kw)
    t.stack.set_hooks(ops.capsule())
    return ops


def test_syn(bed):
    ops = install(bed, "syn", isn=0x11223344, mss=1111)
    bed.line(f"0 < S 0 win 65535 {OPTS}")
    ((_, packet),) = packets(bed)
    assert (packet[TCP].seq, dict(packet[TCP].options)["MSS"]) == (0x11223344, 1111)
    assert ops.calls == 1
    bed.stack.set_hooks(None)
    bed.line(f"0 1001 < S 0 win 65535 {OPTS}")
    ((_, packet),) = packets(bed, 1001)
    assert dict(packet[TCP].options)["MSS"] == 1460 and ops.calls == 1


def test_python_comes_after_c(bed):
    install(bed, "syn", isn=1, mss=1111)
    bed.stack.on("syn", lambda view: setattr(view, "mss", 1222))
    bed.line(f"0 < S 0 win 65535 {OPTS}")
    ((_, packet),) = packets(bed)
    assert (packet[TCP].seq, dict(packet[TCP].options)["MSS"]) == (1, 1222)


def test_synack(bed):
    install(bed, "synack")
    bed.line(f"0 < S 0 win 65535 {OPTS}")
    bed.advance(1_600_000_000)
    assert [at for at, _ in packets(bed)] == [0, 1, 1.25, 1.5]


def test_ack(bed):
    ops = install(bed, "ack", "drop")
    bed.line(f"0 < S 0 win 65535 {OPTS}")
    ((_, packet),) = packets(bed)
    ts = dict(packet[TCP].options)["Timestamp"][0]
    bed.line(f"0 < . 1 ack ={packet[TCP].seq + 1} win 512 <nop,nop,TS 1000 ={ts}> ! HOOK")
    assert (ops.calls, ops.reason) == (2, 64)


def test_acceptq_and_accept(bed):
    install(bed, "acceptq", "accept")
    for port in (1001, 1002, 1003):
        bed.connect(port, 0)
    # the first call of the table's functions turned the queue round three times; accept refuses only on the first call of all
    order = [bed.listener.accept()[1][1] for _ in range(3)]
    assert order == [1003, 1002, 1001]


def test_accept_refuses_the_first(bed):
    for port in (1001, 1002):
        bed.connect(port, 0)
    install(bed, "accept")
    conn, peer = bed.listener.accept()
    assert peer[1] == 1002 and "R" in packets(bed, 1001)[0][1][TCP].flags
    conn.close()


def test_established(bed):
    install(bed, "established")
    bed.connect(1000, 0)
    conn, _ = bed.listener.accept()
    conn.send(b"x")
    assert packets(bed)[0][1].tos == 0x20
    conn.close()


def test_listen_and_connect(bed):
    install(bed, "listen", "connect")
    with pytest.raises(PermissionError):
        bed.listen(81, 5)
    sock = bed.stack.socket()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.connect(("192.0.2.9", 80))
    packets(bed, 80)
    bed.advance(350_000_000)
    assert [at for at, _ in packets(bed, 80)] == [0.3]
    sock.close()


def test_overflow():
    with Testbed(backlog=0) as t:
        install(t, "overflow")
        t.connect(1001, 0)
        for port in (1002, 1003):
            t.line(f"0 {port} < S 0 win 65535 {OPTS} ! TCP_LISTEN_OVERFLOW")
        t.stack.set_hooks(None)


def test_select():
    with Testbed(backlog=None) as t:
        members = t.group(3)
        install(t, "select")
        for port in range(3000, 3006):
            t.connect(port, 0)
        got = [members[2].accept()[0] for _ in range(6)]
        for sock in got + members:
            sock.close()
        t.swallow()
        t.stack.set_hooks(None)


def test_wrong_tables_are_refused(bed):
    with pytest.raises(ValueError, match=r"named 'ustack\.core\.hooks\.hooks_t'"):
        bed.stack.set_hooks(hookops.wrong_capsule())
    with pytest.raises(ValueError, match="named"):
        bed.stack.set_hooks(5)
    with pytest.raises(ValueError, match="version"):
        bed.stack.set_hooks(hookops.Ops("syn", version=999).capsule())
