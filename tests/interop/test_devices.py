"""Devices: Ethernet through a packet socket, what goes wrong with TUN devices, and many kernel clients at once."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ustack
from tests.interop.conftest import STACK, Namespace, TunLab, WebServer
from tests.interop.test_tun_transfers import download, upload
from ustack import RawLink, Stack, TunLink

pytestmark = pytest.mark.root


# ---- veth ------------------------------------------------------------------------------------------------------------------------
class VethLab(TunLab):
    """The kernel at 192.0.2.1 in one namespace, the stack's end of the veth pair in another."""

    def __init__(self, ns: Namespace, ours: Namespace) -> None:
        super().__init__(ns)
        self.ours = ours
        ns.ip_ok("link", "add", "veth0", "type", "veth", "peer", "name", "ustack0", "netns", ours.name)
        ns.ip_ok("addr", "add", "192.0.2.1/24", "dev", "veth0")
        ns.ip_ok("link", "set", "veth0", "up")
        ours.ip_ok("link", "set", "ustack0", "up")

    def raw(self, **kwargs: object) -> RawLink:
        with self.ours.inside():
            return RawLink("ustack0", **kwargs)  # type: ignore[arg-type]

    def stack(self, link: ustack.links.base.Link | None = None, **kwargs: object) -> Stack:
        with self.ours.inside():
            return super().stack(link or self.raw(), **kwargs)


@pytest.fixture
def veth(netns: Callable[[], Namespace]) -> Iterator[VethLab]:
    lab = VethLab(netns(), netns())
    try:
        yield lab
    finally:
        lab.close()


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_files_over_ethernet(veth: VethLab, tmp_path: Path, offload: bool) -> None:
    stack = veth.stack(veth.raw(offload=offload))
    server = WebServer(stack, os.urandom(5_000_000))
    download(veth, server, tmp_path / "down")
    upload(veth, server, os.urandom(5_000_000), tmp_path / "up")
    assert server.errors == []
    assert stack.nstat().get("TcpInCsumErrors", 0) == 0, "checksums left open on the veth are not bad"
    # The kernel of our end does not own the address: no reset came from it.
    resets = veth.ours.run("nstat", "-az", "TcpOutRsts").stdout.decode().split()
    assert resets[resets.index("TcpOutRsts") + 1] == "0"
    neighbours = veth.ns.ip_ok("neigh", "show", "to", STACK)
    assert stack_mac(veth) in neighbours


def stack_mac(veth: VethLab) -> str:
    return veth.ours.run("cat", "/sys/class/net/ustack0/address").stdout.decode().strip()


def test_the_stack_asks_for_its_neighbour(veth: VethLab) -> None:
    """connect() before any packet came: ARP goes out, the SYN waits for the answer."""
    stack = veth.stack()
    with veth.ns.inside():
        listener = socket.create_server(("192.0.2.1", 7000))
    start = time.monotonic()
    with stack.create_connection(("192.0.2.1", 7000), timeout=10) as conn, listener.accept()[0] as other:
        assert time.monotonic() - start < 0.9, "no retransmission was needed"
        other.sendall(b"hello")
        assert conn.recv(10) == b"hello"
    listener.close()


def test_a_gateway_is_used_for_other_networks(veth: VethLab) -> None:
    veth.ns.ip_ok("addr", "add", "198.51.100.1/32", "dev", "lo")
    with veth.ns.inside():
        listener = socket.create_server(("198.51.100.1", 7000))
    stack = veth.stack(veth.raw(gateway="192.0.2.1"))
    with stack.create_connection(("198.51.100.1", 7000), timeout=10):
        pass
    listener.close()


def test_a_bad_ethernet(veth: VethLab, tmp_path: Path) -> None:
    link = ustack.ImpairedLink(veth.raw(), loss=0.02, delay=0.003, duplicate=0.02, corrupt=0.01, seed=5)
    server = WebServer(veth.stack(link), os.urandom(1_000_000))
    download(veth, server, tmp_path / "down")
    upload(veth, server, os.urandom(1_000_000), tmp_path / "up")
    assert server.errors == []


def test_what_a_raw_link_refuses(veth: VethLab) -> None:
    with veth.ours.inside():
        with pytest.raises(OSError, match="there is no interface 'nothere'"):
            RawLink("nothere")
        with pytest.raises(OSError, match=r"loopback.*veth"):
            RawLink("lo")
        veth.ours.ip_ok("addr", "add", f"{STACK}/24", "dev", "ustack0")
        with pytest.raises(OSError, match=r"the kernel holds 192\.0\.2\.2 too") as caught:
            Stack(RawLink("ustack0"), f"{STACK}/24")
        assert caught.value.errno == errno.EADDRINUSE
        veth.ours.ip_ok("link", "set", "ustack0", "down")
        with pytest.raises(OSError, match="ip link set ustack0 up"):
            RawLink("ustack0")


# ---- TUN: what goes wrong ----------------------------------------------------------------------------------------------------------
def test_no_device_node() -> None:
    with pytest.raises(FileNotFoundError, match=r"modprobe tun.*mknod"):
        TunLink("ustack0", path="/dev/net/there-is-none")
    with pytest.raises(OSError, match="no TUN clone device"):
        TunLink("ustack0", path="/dev/null")
    with pytest.raises(ValueError, match="at most 15"):
        TunLink("a-name-that-is-too-long")


def test_the_device_is_in_use(lab: TunLab) -> None:
    lab.stack()
    with lab.ns.inside(), pytest.raises(OSError, match="in use by another program") as caught:
        TunLink("ustack0")
    assert caught.value.errno == errno.EBUSY


def test_the_name_is_taken_by_something_else(lab: TunLab) -> None:
    lab.ns.ip_ok("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    lab.ns.ip_ok("tuntap", "add", "mode", "tap", "tap0")
    with lab.ns.inside():
        for name in ("veth0", "tap0", "lo"):
            with pytest.raises(OSError, match=f"'{name}' exists and is no TUN device|in use"):
                TunLink(name)


def test_a_persistent_device_is_attached_to_and_stays(lab: TunLab, tmp_path: Path) -> None:
    lab.ns.ip_ok("tuntap", "add", "mode", "tun", "ustack0")
    for offload in (True, False, True):
        stack = lab.stack(lab.tun(offload=offload))
        server = WebServer(stack, os.urandom(300_000))
        download(lab, server, tmp_path / "down")
        stack.stop()
        assert "ustack0" in lab.ns.ip_ok("link", "show", "ustack0")


def test_the_device_s_own_number_and_mtu(lab: TunLab) -> None:
    with lab.ns.inside():
        a, b = TunLink("lab%d"), TunLink("lab%d", mtu=1400)
    assert (a.name, b.name, b.mtu) == ("lab0", "lab1", 1400)
    assert "mtu 1400" in lab.ns.ip_ok("link", "show", "lab1")
    a.close()
    b.close()
    b.close()
    assert "lab0" not in lab.ns.ip_ok("link", "show")


UNPRIVILEGED = """
import os, sys
import ustack
try:
    ustack.TunLink("ustack0", path=sys.argv[1] if len(sys.argv) > 1 else os.environ["NODE"])
except PermissionError as exc:
    print(exc)
try:
    ustack.RawLink("lo")
except PermissionError as exc:
    print(exc)
"""


def test_without_the_privilege_the_ways_out_are_named(lab: TunLab, program: Callable[..., subprocess.Popen[str]],
                                                      tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path(f"/tmp/ustack-node-{os.getpid()}")
    folder.mkdir()
    try:
        for mode in (0o600, 0o666):
            node = folder / f"tun{mode:o}"
            os.mknod(node, stat.S_IFCHR | mode, os.makedev(10, 200))
            node.chmod(mode)
            os.chmod(folder, 0o755)
            source = "import os\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n" + UNPRIVILEGED.replace(
                'sys.argv[1] if len(sys.argv) > 1 else os.environ["NODE"]', repr(str(node))).replace("import os, sys\nimport ustack\n", "")
            run = program("import ustack\n" + source)
            out, err = run.communicate(timeout=30)
            assert run.returncode == 0, err
            tun, raw = out.splitlines()
            assert "Three ways out" in tun and "CAP_NET_ADMIN" in tun and "ip tuntap add" in tun and "unshare" in tun
            assert ("not open to this user" in tun) == (mode == 0o600)
            assert "CAP_NET_RAW" in raw
    finally:
        for node in folder.iterdir():
            node.unlink()
        folder.rmdir()


ROOTLESS = """
import ctypes, os, subprocess, sys, threading
import ustack
os.setgroups([]); os.setgid(65534); os.setuid(65534)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)       # dumpable again, so that the maps may be written
if libc.unshare(0x10000000 | 0x40000000):
    print("no user namespace:", os.strerror(ctypes.get_errno()))
    sys.exit(4)
for name, text in (("setgroups", "deny"), ("uid_map", "0 65534 1"), ("gid_map", "0 65534 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
link = ustack.TunLink("ustack0", path="NODE")
subprocess.run("ip addr add 192.0.2.1/24 dev ustack0", shell=True, check=True)
blob = bytes(range(256)) * 4000
with ustack.Stack(link, "192.0.2.2/24") as stack, stack.create_server(("192.0.2.2", 80)) as server:
    def serve():
        conn, _ = server.accept()
        with conn:
            while b"\\r\\n\\r\\n" not in conn.recv(65536):
                pass
            conn.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + blob)
    threading.Thread(target=serve).start()
    got = subprocess.run(["curl", "-sS", "-m", "20", "http://192.0.2.2/"], capture_output=True)
    print(got.returncode, got.stdout == blob, got.stderr.decode())
"""


def test_without_root_in_a_namespace_of_one_s_own(program: Callable[..., subprocess.Popen[str]]) -> None:
    """A node open to all, a user that is nobody, unshare: a stack on a TUN device, and curl."""
    folder = Path(f"/tmp/ustack-rootless-{os.getpid()}")
    folder.mkdir()
    try:
        folder.chmod(0o755)
        os.mknod(folder / "tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
        (folder / "tun").chmod(0o666)
        run = program(ROOTLESS.replace("NODE", str(folder / "tun")).replace("\\\\", "\\"), cwd="/")
        out, err = run.communicate(timeout=50)
        if run.returncode == 4:
            pytest.skip(out.strip())
        assert (run.returncode, out.split()) == (0, ["0", "True"]), (out, err)
    finally:
        (folder / "tun").unlink(missing_ok=True)
        folder.rmdir()


def test_the_device_disappears(lab: TunLab) -> None:
    """The namespace's device is deleted under the stack: the stack stays alive, its timers and calls work, stop() works."""
    lab.ns.ip_ok("tuntap", "add", "mode", "tun", "ustack0")
    stack = lab.stack()
    server = stack.create_server((STACK, 80))
    lab.ns.ip_ok("link", "del", "ustack0")
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.accept()
    end = time.monotonic() + 5
    while not stack._driver.counters()["failed"] and time.monotonic() < end:
        time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1, "the engine thread does not spin on a dead device"
    with pytest.raises(TimeoutError):
        stack.create_connection(("192.0.2.1", 7), timeout=0.05)


# ---- calls that fail, with what to do ----------------------------------------------------------------------------------------------
def test_errors_of_a_running_stack(lab: TunLab) -> None:
    stack = lab.stack()
    server = stack.create_server((STACK, 80))
    with pytest.raises(OSError, match="taken") as caught:
        stack.create_server((STACK, 80))
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="not an address of this stack") as caught:
        stack.create_server(("192.0.2.77", 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    server.close()
    with pytest.raises(OSError) as caught:
        server.accept()
    assert caught.value.errno == errno.EBADF
    stack.stop()
    with pytest.raises(OSError, match="stopped") as caught:
        stack.socket()


# ---- many kernel clients ---------------------------------------------------------------------------------------------------------
CLIENTS = """
import os, resource, select, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
socks = []
for i in range(n):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("192.0.2.2", 80))
    socks.append(s)
left = set(socks)
ok = 0
ep = select.poll()
by = {s.fileno(): s for s in socks}
sent = set()
got = {s: b"" for s in socks}
for s in socks:
    ep.register(s, select.POLLOUT)
while by:
    for fd, ev in ep.poll(20000) or sys.exit("nothing happens"):
        s = by[fd]
        if s not in sent:
            err = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if err:
                sys.exit(os.strerror(err))
            s.send(b"q" * 300)
            sent.add(s)
            ep.modify(s, select.POLLIN)
            continue
        data = s.recv(65536)
        got[s] += data
        if not data:
            ep.unregister(s)
            del by[fd]
            s.close()
            ok += got[s] == b"a" * 3000
print(ok)
"""


def test_a_thousand_clients_at_once_leave_nothing_behind(lab: TunLab, program: Callable[..., subprocess.Popen[str]]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack = lab.stack(sysctl={"net.ipv4.tcp_max_syn_backlog": 4096, "net.core.somaxconn": 4096})
    clean = stack.pools()
    server = stack.create_server((STACK, 80), backlog=2000)
    run = program(CLIENTS, "ip", "netns", "exec", lab.ns.name)
    # All are established before the first is served.
    end = time.monotonic() + 30
    while (queued := stack.ss("-ltn")[0]["recvq"]) < 1000 and time.monotonic() < end and run.poll() is None:
        time.sleep(0.02)
    assert queued == 1000, (queued, run.poll() and run.communicate())
    assert stack.ss("-ltn")[0]["sendq"] == 2000

    def serve(count: int) -> None:
        for _ in range(count):
            conn, _ = server.accept()
            with conn:
                got = 0
                while got < 300:
                    got += len(conn.recv(4096))
                conn.sendall(b"a" * 3000)
                conn.shutdown(socket.SHUT_WR)
                while conn.recv(4096):
                    pass

    threads = [threading.Thread(target=serve, args=(100,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    out, err = run.communicate(timeout=45)
    assert (run.returncode, out.strip()) == (0, "1000"), err
    for thread in threads:
        thread.join(20)
    server.close()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        pools = stack.pools()
        if {**pools, "time_wait": 0, "bind": 0} == {**clean, "time_wait": 0, "bind": 0}:
            break
        time.sleep(0.05)
    assert {**pools, "time_wait": 0, "bind": 0} == {**clean, "time_wait": 0, "bind": 0}
    assert pools["time_wait"] <= 1000
    assert stack.nstat()["TcpPassiveOpens"] == 1000
    assert stack.nstat().get("TcpExtListenOverflows", 0) == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
