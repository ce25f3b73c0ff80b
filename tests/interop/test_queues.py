"""Several queues, an engine on each: every packet on the wrong queue, fragments, ICMP errors; one listener for the program.

The wire between the two stacks is a pair of threads that choose the queue by chance, so most packets come where their flow is not known.
"""

import hashlib
import os
import random
import select
import socket
import struct
import threading
import time

import pytest

import ustack
from ustack.links.base import Link, Port

QUEUES = 4
MTU = 9000
SERVER, CLIENT = "192.0.2.2", "192.0.2.1"


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def with_ip_checksum(header):
    header = bytes(header[:10]) + b"\0\0" + bytes(header[12:])
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:]


def fragments(packet):
    """Two fragments of a packet without IP options."""
    cut = (len(packet) - 20) // 2 // 8 * 8
    out = []
    for start, body, more in ((0, packet[20:20 + cut], 0x2000), (cut, packet[20 + cut:], 0)):
        header = bytearray(packet[:20])
        struct.pack_into("!H", header, 2, 20 + len(body))
        struct.pack_into("!H", header, 6, more | start // 8)
        out.append(with_ip_checksum(header) + body)
    return out


def too_big(packet, mtu):
    """ICMP "fragmentation needed" about a packet of the server's, from the client's side."""
    icmp = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + packet[:28]
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 1, 0, 64, 1, 0) + packet[16:20] + packet[12:16]
    return with_ip_checksum(header) + icmp


class Cable(Link):
    """A link of socket pairs, one a queue; `far` holds the other ends."""

    def __init__(self, queues):
        self.mtu = MTU
        self.queues = queues
        self.near, self.far = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(queues)), strict=True)
        for end in self.near:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        for end in self.far:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)

    def open(self, stack, *, offload=True):
        return self.open_queues(stack, 1)[0]

    def open_queues(self, stack, queues):
        return [Port(end.fileno()) for end in self.near]

    def close(self):
        for end in self.near + self.far:
            end.close()


class Confusion:
    """The wire: what the client sends comes on any queue of the server's."""

    def __init__(self, client, server, seed):
        self.client, self.server = client, server
        self.chance = random.Random(seed)
        self.fragmented = self.errors = self.resets = 0
        self.to_break = 0           # how many of the next packets to cut into fragments
        self.error_about = set()    # ports of the client whose server packets get an ICMP error, once
        self.error_mtu = 1200
        self.over = threading.Event()
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._up, self._down)]
        for thread in self.threads:
            thread.start()

    def _any_queue(self, packet):
        self.chance.choice(self.server.far).send(packet)

    def _up(self):
        while not self.over.is_set():
            if not select.select([self.client.far[0]], [], [], 0.1)[0]:
                continue
            packet = self.client.far[0].recv(70000)
            if self.to_break and len(packet) > 1000:
                self.to_break -= 1
                self.fragmented += 1
                pieces = fragments(packet)
                self.chance.shuffle(pieces)
                for piece in pieces:
                    self._any_queue(piece)
            else:
                self._any_queue(packet)

    def _down(self):
        while not self.over.is_set():
            for end in select.select(self.server.far, [], [], 0.1)[0]:
                packet = end.recv(70000)
                if packet[9] == 6 and packet[33] & 4:
                    self.resets += 1
                port = struct.unpack_from("!H", packet, 22)[0]
                if packet[9] == 6 and port in self.error_about and not packet[33] & 2:
                    self.error_about.discard(port)
                    self.errors += 1
                    for queue in self.server.far:       # whatever queue is the owner's: all the others are not
                        queue.send(too_big(packet, self.error_mtu))
                self.client.far[0].send(packet)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def net():
    left, right = Cable(1), Cable(QUEUES)
    wire = Confusion(left, right, seed=7)
    client = ustack.Stack(left, CLIENT + "/24", mtu=MTU)
    server = ustack.Stack(right, SERVER + "/24", mtu=MTU)
    yield client, server, wire
    wire.stop()
    client.stop()
    server.stop()


def receive(conn, size, out):
    digest = hashlib.sha256()
    buffer = bytearray(1 << 18)
    while size and (n := conn.recv_into(buffer)):
        digest.update(memoryview(buffer)[:n])
        size -= n
    out.append(digest.digest())


def test_100_mb_on_wrong_queues_arrive_equal_and_nobody_is_reset(net):
    client, server, wire = net
    size, flows = 12_500_000, 4
    data = os.urandom(size)
    want = hashlib.sha256(data).digest()
    up, down = [], []
    threads = []
    with server.create_server((SERVER, 80)) as listener:
        pairs = []
        for _ in range(flows):
            conn = client.create_connection((SERVER, 80), timeout=10)
            pairs.append((conn, listener.accept()[0]))
        wire.to_break = 200
        wire.error_about = {conn.getsockname()[1] for conn, _ in pairs}
        for conn, served in pairs:
            conn.settimeout(60)
            served.settimeout(60)
            for sender, receiver, out in ((conn, served, up), (served, conn, down)):
                threads += [threading.Thread(target=sender.sendall, args=(data,)),
                            threading.Thread(target=receive, args=(receiver, size, out))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        # Before the end: a packet that is overtaken by the last of its flow is nobody's, on Linux as here.
        assert wire.resets == 0 and server.nstat().get("TcpOutRsts", 0) == 0
        for conn, served in pairs:
            conn.close()
            served.close()
    assert up == [want] * flows and down == [want] * flows
    assert wire.fragmented == 200 and server.nstat()["IpReasmOKs"] == 200 and "IpReasmFails" not in server.nstat()
    assert wire.errors == flows
    passed = server.shards.counters()
    assert sum(n for n, _ in passed) > 5000 and not any(dropped for _, dropped in passed)


def test_an_icmp_error_on_any_queue_finds_the_flow(net):
    client, server, wire = net
    with server.create_server((SERVER, 80)) as listener:
        for mtu in range(8000, 2000, -1000):
            conn = client.create_connection((SERVER, 80), timeout=10)
            served, _peer = listener.accept()
            wire.error_mtu = mtu
            wire.error_about = {conn.getsockname()[1]}
            served.sendall(b"x" * 4000)
            end = time.monotonic() + 5
            while served.getsockopt(socket.IPPROTO_IP, 14) != mtu and time.monotonic() < end:   # IP_MTU
                time.sleep(0.005)
            assert served.getsockopt(socket.IPPROTO_IP, 14) == mtu
            served.close()
            conn.close()
    assert wire.errors == 6 and wire.resets == 0


def test_a_cookie_is_believed_on_any_queue_and_makes_one_connection(net):
    client, server, wire = net
    server.sysctl["net.ipv4.tcp_syncookies"] = 2
    with server.create_server((SERVER, 80)) as listener:
        listener.settimeout(10)
        for _ in range(50):
            with client.create_connection((SERVER, 80), timeout=10) as conn:
                conn.sendall(b"hello")
                served, _peer = listener.accept()
                with served:
                    served.settimeout(10)
                    assert served.recv(10) == b"hello"
        assert server.nstat()["TcpExtSyncookiesRecv"] == 50
        assert wire.resets == 0


def test_the_program_sees_one_listener(net):
    client, server, _wire = net
    with server.create_server((SERVER, 80), backlog=5) as listener:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        rows = server.ss("-ltn")
        assert [r["info"] for r in rows] == [f"queue:{i}/{QUEUES}" for i in range(QUEUES)]
        assert {(r["local"], r["sendq"]) for r in rows} == {(f"{SERVER}:80", 5)}
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        assert poll.poll(0) == []
        conns = [client.create_connection((SERVER, 80), timeout=10) for _ in range(12)]
        assert poll.poll(2000)
        got = []
        while len(got) < len(conns) and poll.poll(2000):
            got.append(listener.accept()[0])
        assert len(got) == len(conns)
        assert poll.poll(0) == []
        assert sum(r["state"] == "ESTAB" for r in server.ss("-tn")) == 12
        owners = {r["info"] for r in server.ss("-tn")}
        assert len(owners) > 1, "flows are on several shards"
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
        for sock in conns + got:
            sock.close()
    assert server.ss("-ltn") == []


def test_a_blocked_accept_is_woken_by_any_shard(net):
    client, server, _wire = net
    with server.create_server((SERVER, 80)) as listener:
        got = []
        def serve():
            for _ in range(8):
                got.append(listener.accept()[0])
        threads = [threading.Thread(target=serve) for _ in range(2)]
        for thread in threads:
            thread.start()
        conns = [client.create_connection((SERVER, 80), timeout=10) for _ in range(16)]
        for thread in threads:
            thread.join(10)
        assert len(got) == 16
        for sock in conns + got:
            sock.close()


def meet(client, server, listener, n):
    """n connections, said hello and closed on both sides."""
    for _ in range(n):
        with client.create_connection((SERVER, 80), timeout=10) as conn:
            conn.sendall(b"hello")
            served, _peer = listener.accept()
            with served:
                served.settimeout(10)
                assert served.recv(10) == b"hello"


def eventually(what, seconds=5):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("cookies", [1, 2])
def test_established_is_asked_once_a_connection_whatever_its_queue(net, cookies):
    client, server, wire = net
    server.sysctl["net.ipv4.tcp_syncookies"] = cookies
    asked = []
    with server.create_server((SERVER, 80)) as listener:
        listener.settimeout(10)
        hook = server.on("established", lambda view: asked.append((view.shard, view.peer, threading.current_thread().name)))
        meet(client, server, listener, 40)
        assert len(asked) == len({peer for _, peer, _ in asked}) == hook.calls == 40
        assert len({shard for shard, _, _ in asked}) > 1
        assert all(name.startswith("ustack notes") for _, _, name in asked)
        assert wire.resets == 0
        hook.remove()
        meet(client, server, listener, 4)
        assert hook.calls == 40


def test_a_reset_by_a_hook_is_the_connection_s_own(net):
    client, server, _wire = net
    with server.create_server((SERVER, 80)) as listener:
        listener.settimeout(10)
        with server.events() as stream:
            hook = server.on("established", lambda view: "reset" if view.peer[1] % 2 else None)
            for port in range(20000, 20016):
                conn = client.socket()
                conn.settimeout(10)
                conn.bind((CLIENT, port))
                try:
                    conn.connect((SERVER, 80))
                    refused = conn.recv(1) == b"" if port % 2 else False
                except ConnectionError:
                    refused = True
                assert refused == bool(port % 2)
                conn.close()
            for _ in range(8):
                listener.accept()[0].close()
            assert server.drops(listener)["HOOK"] == 8 and hook.errors == 0
            refused = [e for e in stream.take() if e.kind == "drop" and e.info["reason"] == "HOOK"]
            assert sorted(e.peer[1] for e in refused) == list(range(20001, 20016, 2))


def test_calls_are_asked_about_once(net):
    _client, server, _wire = net
    seen = []
    server.on("listen", lambda view: seen.append((view.shard, view.local, view.backlog)))
    server.on("state", lambda view: seen.append((view.shard, view.new_state)))
    with server.create_server((SERVER, 80), backlog=3):
        eventually(lambda: len(seen) == 1 + QUEUES)
    assert seen[0] == (0, (SERVER, 80), 3)
    eventually(lambda: len(seen) == 1 + 2 * QUEUES)
    assert sorted(seen[1:]) == sorted([(i, state) for i in range(QUEUES) for state in (7, 10)])


def test_accept_is_asked_on_the_queue_of_the_connection(net):
    client, server, _wire = net
    with server.create_server((SERVER, 80)) as listener:
        listener.settimeout(0.3)
        hook = server.on("accept", lambda view: "reset" if view.peer[1] == 20001 else None)
        for port in (20000, 20001, 20002):
            conn = client.socket()
            conn.bind((CLIENT, port))
            conn.settimeout(10)
            conn.connect((SERVER, 80))
        got = []
        with pytest.raises(TimeoutError):
            while True:
                got.append(listener.accept())
        assert sorted(peer[1] for _, peer in got) == [20000, 20002] and hook.errors == 0
        for sock, _ in got:
            sock.close()


def test_events_of_all_queues_in_the_order_of_time(net):
    client, server, _wire = net
    with server.create_server((SERVER, 80)) as listener, server.events() as stream:
        listener.settimeout(10)
        meet(client, server, listener, 24)
        events = stream.take()
        assert [e.at for e in events] == sorted(e.at for e in events)
        queued = [e for e in events if e.kind == "queued"]
        assert len(queued) == 24 and len({e.shard for e in queued}) > 1 and stream.lost == 0
    assert stream.closed and stream.take() == []


def test_a_packet_s_hook_names_the_c_table(net):
    _client, server, _wire = net
    with pytest.raises(ValueError, match="op 'syn' of a C op-table"):
        server.on("syn", print)


def test_a_link_with_one_queue_says_so():
    left, _right = ustack.MemoryLink.pair()
    with pytest.raises(ValueError, match="has one queue, not 2"):
        ustack.Stack(left, "192.0.2.1/24", queues=2)
