"""The calls of packetdrill's plug-in interface on a stack (examples/packetdrill_plugin.py): results and errnos as Linux's."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator

import pytest

from examples.packetdrill_plugin import SOCK_NONBLOCK, PacketdrillInterface, segment

SOL_SOCKET, SO_ERROR, SOL_TCP, TCP_INFO, SIOCINQ = 1, 4, 6, 11, 0x541B
POLLIN, POLLOUT, POLLNVAL = 1, 4, 0x20
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
PEER = ("192.0.2.1", 4000)


@pytest.fixture
def plug() -> Iterator[PacketdrillInterface]:
    made = PacketdrillInterface()
    yield made
    made.free()


def listening(plug: PacketdrillInterface, flags: int = SOCK_NONBLOCK) -> int:
    fd = plug.socket(2, 1 | flags, 6)
    assert plug.bind(fd, ("192.168.0.1", 8080)) == 0 == plug.listen(fd, 1)
    return fd


def opened(plug: PacketdrillInterface, listener: int) -> tuple[int, int]:
    """A connection's descriptor, and the stack's initial number."""
    plug.netdev_send(segment(SYN, 0, 0))
    status, synack, _ = plug.netdev_receive()
    assert status == 0 and synack[33] == SYN | ACK
    isn = int.from_bytes(synack[24:28], "big")
    plug.netdev_send(segment(ACK, 1, isn + 1))
    fd, peer = plug.accept(listener)
    assert peer == PEER
    return fd, isn


def test_errors_come_as_negative_numbers(plug: PacketdrillInterface) -> None:
    assert plug.socket(10, 1, 6) == -errno.EAFNOSUPPORT
    fd = plug.socket(2, 1 | SOCK_NONBLOCK, 6)
    assert plug.accept(fd) == (-errno.EINVAL, None)
    assert plug.read(fd, 10) == (-errno.ENOTCONN, b"") and plug.read(fd, 0) == (0, b"")
    assert plug.write(fd, b"x") == -errno.EPIPE
    assert plug.shutdown(fd, 0) == -errno.ENOTCONN
    assert plug.setsockopt(fd, SOL_TCP, 1, b"\1") == -errno.EINVAL
    assert plug.getsockopt(fd, SOL_TCP, 9999, 4) == (-errno.ENOPROTOOPT, b"")
    assert plug.connect(fd, 2, ("192.0.2.1", 80)) == -errno.EINPROGRESS
    assert plug.close(fd) == 0 and plug.close(fd) == -errno.EBADF == plug.bind(fd, ("", 1)) == plug.fcntl(fd, 3)
    assert plug.poll([(fd, POLLIN)], 0) == (1, [POLLNVAL])


def test_a_connection_from_open_to_close(plug: PacketdrillInterface) -> None:
    listener = listening(plug)
    assert plug.accept(listener) == (-errno.EAGAIN, None)
    fd, isn = opened(plug, listener)
    assert plug.fcntl(fd, 3) == 2 and plug.fcntl(fd, 4, 2 | 0o4000) == 0 and plug.fcntl(fd, 3) == 2 | 0o4000
    assert plug.poll([(fd, POLLIN | POLLOUT)], 0) == (1, [POLLOUT])
    plug.usleep(10_000)
    plug.netdev_send(segment(PSH | ACK, 1, isn + 1, bytes(100)))
    assert plug.ioctl(fd, SIOCINQ) == (0, 100)
    assert plug.recv(fd, 40) == (40, bytes(40)) and plug.recvmsg(fd, 100, 0)[:2] == (60, bytes(60))
    assert plug.read(fd, 10) == (-errno.EAGAIN, b"")
    assert plug.netdev_receive()[1][33] == ACK
    assert plug.sendmsg(fd, [b"abc", b"de"], [], 0) == 5
    _, data, at = plug.netdev_receive()
    assert data[-5:] == b"abcde" and at == plug.gettimeofday_usecs() == 10_000
    status, info = plug.getsockopt(fd, SOL_TCP, TCP_INFO, 280)
    assert status == 0 and len(info) == 280 and info[0] == 1 and struct.unpack_from("=I", info, 24)[0] == 1      # state, unacked
    _, again, at = plug.netdev_receive()
    assert again[24:] == data[24:] and at > 10_000                       # the timer ran because the tool waited for a packet
    plug.netdev_send(segment(RST, 101, 0))
    assert plug.getsockopt(fd, SOL_SOCKET, SO_ERROR, 4) == (0, struct.pack("=i", errno.ECONNRESET))
    assert plug.shutdown(fd, 1) == -errno.ENOTCONN
    assert plug.close(fd) == 0 == plug.close(listener)


def test_a_call_blocks_while_another_thread_moves_the_time(plug: PacketdrillInterface) -> None:
    listener = listening(plug, 0)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(plug.accept(listener)))
    thread.start()
    plug.usleep(1000)
    assert not got
    plug.netdev_send(segment(SYN, 0, 0))
    isn = int.from_bytes(plug.netdev_receive()[1][24:28], "big")
    plug.netdev_send(segment(ACK, 1, isn + 1))
    thread.join(10)
    assert got and got[0][1] == PEER                                     # type: ignore[index]
    assert plug.netdev_receive(1000)[0] == -errno.ETIMEDOUT
