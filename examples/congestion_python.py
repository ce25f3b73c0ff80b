"""A congestion control in Python, in virtual time: Reno that grows half as fast and gives up less, beside Reno, on a line that loses packets.

The same module in C is examples/congestion_c/timid.pyx; docs/congestion.md describes both.
"""

import socket

import ustack
from ustack import congestion


@congestion.register
class Timid(congestion.CongestionControl):
    """A quarter less at a loss, one packet in two round trips without."""

    name = "timid"

    def ssthresh(self) -> int:
        return max(self.conn.cwnd * 3 // 4, 2)

    def cong_avoid(self, *, ack: int, acked: int) -> None:
        conn = self.conn
        if not conn.is_cwnd_limited:
            return
        if conn.in_slow_start:
            acked = conn.slow_start(acked)
            if not acked:
                return
        conn.cong_avoid_ai(2 * conn.cwnd, acked)


def transfer(name: str, size: int = 1_000_000) -> float:
    """Virtual seconds that so many bytes take with this congestion control."""
    clock = ustack.VirtualClock()
    left, right = ustack.MemoryLink.pair()
    wire = ustack.ImpairedLink(left, delay=0.010, loss=0.01, seed=3)
    with (
        ustack.Stack(wire, "192.0.2.1/24", clock=clock, seed=1) as client,
        ustack.Stack(right, "192.0.2.2/24", clock=clock, seed=2) as server,
    ):
        listener = server.create_server(("192.0.2.2", 80))
        conn = client.socket()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        conn.connect(("192.0.2.2", 80))
        peer, _ = listener.accept()
        client.submit(conn, "sendall", bytes(size))
        got = 0
        while got < size:
            got += len(peer.recv(65536))
        for sock in (conn, peer, listener):
            sock.close()
        return clock.now / 1e9


def main() -> None:
    for name in ("reno", "timid"):
        print(f"{name:8} {transfer(name):.3f} s")


if __name__ == "__main__":
    main()
