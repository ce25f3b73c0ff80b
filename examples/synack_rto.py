"""An own SYN-ACK timeout in two hooks: clients of the own network are asked again soon and evenly, others as Linux does.

Linux repeats a SYN-ACK after 1, 3, 7, ... s whoever the client is. Within a data centre a lost SYN-ACK is worth repeating after some ms:
`syn` chooses the first timeout (BPF: TIMEOUT_INIT), `synack` each of the later ones.
"""

import ipaddress

from engine_by_hand import syn as bytes_of_syn

import ustack
from ustack.hooks import Syn, SynAck

SECOND = 1_000_000_000


class NearTimeout:
    """`ms` between SYN-ACKs for the clients of a network; `install` hooks it into a stack."""

    def __init__(self, stack: ustack.Stack, network: str, ms: int) -> None:
        self.stack = stack
        self.network = ipaddress.ip_network(network)
        self.ms = ms

    def install(self) -> None:
        self.stack.on("syn", self.first)
        self.stack.on("synack", self.later)

    def near(self, peer: tuple[str, int]) -> bool:
        return ipaddress.ip_address(peer[0]) in self.network

    def first(self, syn: Syn) -> None:
        if self.near(syn.peer):
            syn.rto_ms = self.ms

    def later(self, timer: SynAck) -> None:
        if self.near(timer.peer):
            timer.next_ms = self.ms


def synacks(client: str) -> list[float]:
    """When a client that does not answer gets its SYN-ACKs, in seconds."""
    clock = ustack.VirtualClock()
    with ustack.Stack(None, "192.0.2.1/24", clock=clock, seed=1) as stack:
        NearTimeout(stack, "192.0.2.0/24", 200).install()
        server = stack.create_server(("192.0.2.1", 80))
        stack.inject(bytes_of_syn(client, "192.0.2.1", 40000, 80, 1000))
        sent = [at / SECOND for at, _ in stack.run_until(70 * SECOND)]
        server.close()
    return sent


def main() -> None:
    for client in ("192.0.2.7", "198.51.100.7"):
        print(f"{client:12}  SYN-ACK at", ", ".join(f"{at:g} s" for at in synacks(client)))


if __name__ == "__main__":
    main()
