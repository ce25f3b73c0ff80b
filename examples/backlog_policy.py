"""An own backlog policy in one hook: random early drop of old half-open connections.

With SYN cookies off, Linux drops every SYN while the SYN queue is full; a slow flood keeps it full. Here, from half of the backlog on, a new SYN
evicts a random request that is old (its SYN-ACK was repeated at least once), the likelier the fuller the queue: a live client answers
within a round trip, so what is old is mostly the flood's.
"""

import random

from engine_by_hand import syn as bytes_of_syn

import ustack
from ustack.hooks import Syn

SECOND = 1_000_000_000


class RandomEarlyDrop:
    """The policy; `install` hooks it into a stack."""

    def __init__(self, stack: ustack.Stack, seed: int = 0) -> None:
        self.stack = stack
        self.random = random.Random(seed)
        self.evicted = 0

    def install(self) -> None:
        self.stack.on("syn", self.decide)

    def decide(self, syn: Syn) -> None:
        start = syn.backlog // 2
        if syn.qlen <= start or self.random.random() > (syn.qlen - start) / (syn.backlog + 1 - start):
            return
        old = [r for r in self.stack.requests() if not r["young"] and (r["laddr"], r["lport"]) == syn.local]
        if old:
            victim = self.random.choice(old)
            syn.evict = (victim["faddr"], victim["fport"])
            self.evicted += 1


def honest_clients_served(policy: bool, backlog: int = 64, clients: int = 20) -> int:
    """Of so many clients, one every 200 ms, how many get a SYN-ACK at once while spoofed SYNs come at 50 a second."""
    clock = ustack.VirtualClock()
    served = 0
    with ustack.Stack(None, "192.0.2.1/24", clock=clock, seed=1, sysctl={"net.ipv4.tcp_syncookies": 0}, ehash_entries=1024) as stack:
        if policy:
            RandomEarlyDrop(stack).install()
        server = stack.create_server(("192.0.2.1", 80), backlog=backlog)
        for i in range(500):
            at = i * SECOND // 50
            stack.inject(bytes_of_syn(f"192.0.2.{10 + i % 200}", "192.0.2.1", 1024 + i, 80, i), at)
            if i >= 300 and i % 10 == 0:                # the flood has filled the queue long ago
                stack.take()
                port = 50000 + i
                stack.inject(bytes_of_syn("192.0.2.9", "192.0.2.1", port, 80, 7), at)
                answers = [ustack.parse(p) for _, p in stack.take()]
                for answer in answers:
                    if answer["dport"] == port and answer["flags"] == 0x12:
                        served += 1
                        stack.inject(_ack(port, answer["seq"] + 1))
        server.close()
    return served


def _ack(port: int, ack: int) -> bytes:
    """The third ACK of the honest client: its SYN with other numbers and flags."""
    packet = bytearray(bytes_of_syn("192.0.2.9", "192.0.2.1", port, 80, 8))
    packet[28:32] = (ack & 0xFFFFFFFF).to_bytes(4, "big")
    packet[33] = 0x10
    packet[36:38] = b"\0\0"
    total = sum(int.from_bytes(packet[i : i + 2], "big") for i in range(12, 40, 2)) + 6 + 20
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    packet[36:38] = (total ^ 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def main() -> None:
    print(f"Linux's rule:      {honest_clients_served(False)} of 20 honest clients are answered")
    print(f"random early drop: {honest_clients_served(True)} of 20 honest clients are answered")


if __name__ == "__main__":
    main()
