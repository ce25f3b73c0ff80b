"""What a running script has: its flows, its file descriptors, the one flow under test.

The rules of which packet belongs to which flow are the reference's (language description, section 3):
the flow under test is set by the latest socket() or connect(); an inbound packet for a listening one
makes a child with a fresh remote port, which then is the flow under test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from ustack.drill.codec import ACK, SYN
from ustack.drill.epoll import Watches, notice
from ustack.drill.nodes import IcmpPacket, Label, Pos, TcpPacket
from ustack.drill.options import Options
from ustack.drill.packets import Flow, FlowState

BOTH = SYN | ACK


class Failure(Exception):
    """The script does not hold.  kind: packet, syscall, time, command, code or script."""

    def __init__(self, kind: str, pos: Pos, message: str, expected: str = "", got: str = "") -> None:
        super().__init__(message)
        self.kind, self.pos, self.message = kind, pos, message
        self.expected, self.got = expected, got


@dataclass(eq=False, slots=True)
class Descriptor:
    """An open script fd; `kind` is "tcp" or "epoll"."""

    kind: str
    sock: Any = None
    flow: Flow | None = None
    nonblocking: bool = False
    watches: Watches = field(default_factory=dict)


class World:
    """Flows and descriptors of one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.flows: list[Flow] = []
        self.under_test: Flow | None = None
        self.fds: dict[int, Descriptor] = {}
        self._clients: dict[str, list[Flow]] = {}
        self._ports = random.Random(f"remote ports {options.seed}")
        self._used_ports: set[int] = set()

    # -- flows
    def new_flow(self) -> Flow:
        flow = Flow()
        self.flows.append(flow)
        self.under_test = flow
        return flow

    def fresh_port(self) -> int:
        """A remote port that this run has not used."""
        while True:
            port = self._ports.randrange(32768, 61000)
            if port not in self._used_ports:
                self._used_ports.add(port)
                return port

    def _tuple_of_server(self, flow: Flow) -> None:
        flow.remote = (self.options.remote_ip, self.fresh_port())
        flow.local = (self.options.local_ip, self.options.bind_port)

    def flow_for_inbound(self, packet: TcpPacket | None, pos: Pos) -> Flow:
        """The flow an inbound packet goes to; packet None for ICMP."""
        flow = self.under_test
        if flow is None:
            raise Failure("script", pos, "an inbound packet before any socket() or connect()")
        if flow.state is FlowState.LISTENING and packet is not None:
            flow = self.new_flow()
            flow.state = FlowState.PASSIVE_RECEIVED
            flow.script_remote_isn = flow.live_remote_isn = packet.start
            self._tuple_of_server(flow)
        elif flow.state is FlowState.NEW and not flow.remote[1]:
            self._tuple_of_server(flow)
        elif not flow.known():
            raise Failure("script", pos, "an inbound packet before the connecting socket has sent anything")
        elif flow.state is FlowState.SYN_SENT and packet is not None and packet.flags & BOTH == BOTH:
            flow.state = FlowState.ACTIVE_ANSWERED
            flow.script_remote_isn = flow.live_remote_isn = packet.start
        return flow

    def clients(self, label: Label) -> list[Flow]:
        """The connections a label stands for; Failure if there are not as many."""
        group = self._clients.get(label.name, [])
        first = (label.index or 1) - 1
        if label.index is None and label.count is None and len(group) > 1:
            raise Failure("script", label.pos, f"@{label.name} is {len(group)} connections: say @{label.name}.N or @{label.name}*N")
        last = first + (label.count or 1)
        if last > len(group):
            raise Failure("script", label.pos, f"@{label.name} is {len(group)} connections: there is no {label}")
        return group[first:last]

    def size_of(self, label: Label) -> int:
        """How many connections have the label's name."""
        return len(self._clients.get(label.name, ()))

    def clients_for_inbound(self, label: Label, packet: TcpPacket | IcmpPacket) -> list[Flow]:
        """The same for an inbound packet, which makes them when the name is new.

        A SYN with another initial number than the connection's begins a new connection of the same client.
        """
        if label.name not in self._clients:
            if label.index is not None or not isinstance(packet, TcpPacket):
                raise Failure("script", label.pos, f"there is no connection @{label.name} yet")
            made = [self.new_flow() for _ in range(label.count or 1)]
            for number, flow in enumerate(made, 1):
                flow.name = f"@{label.name}" + (f".{number}" if label.count else "")
                flow.state = FlowState.PASSIVE_RECEIVED
                flow.script_remote_isn = flow.live_remote_isn = packet.start
                self._tuple_of_server(flow)
            self._clients[label.name] = made
        found = self.clients(label)
        if isinstance(packet, TcpPacket) and packet.flags & BOTH == SYN:
            for flow in found:
                flow.next_isn = packet.start if packet.start != flow.script_remote_isn else None
        self.under_test = found[-1]
        return found

    def flow_for_outbound(self, packet: TcpPacket | None, pos: Pos) -> Flow:
        """The flow an outbound packet must belong to; notes the script's initial sequence number."""
        flow = self.under_test
        if flow is None:
            raise Failure("script", pos, "an outbound packet before any socket() or connect()")
        if packet is not None and flow.state is FlowState.CONNECTING and packet.flags & BOTH == SYN:
            flow.state = FlowState.SYN_SENT
            flow.script_local_isn = packet.start
        return flow

    @staticmethod
    def learn_isn(flow: Flow, packet: TcpPacket, live_seq: int) -> None:
        """The stack's SYN-ACK for a child: pair its sequence number with the script's."""
        if packet.flags & BOTH != BOTH:
            return
        if flow.next_isn is not None:
            flow.script_remote_isn = flow.live_remote_isn = flow.next_isn
            flow.state, flow.next_isn = FlowState.PASSIVE_RECEIVED, None
        if flow.state is FlowState.PASSIVE_RECEIVED:
            flow.state = FlowState.PASSIVE_ANSWERED
            flow.script_local_isn, flow.live_local_isn = packet.start, live_seq

    def connecting(self, flow: Flow) -> None:
        """connect(), or a send that opens the connection."""
        if flow.state is not FlowState.NEW:
            return
        flow.state = FlowState.CONNECTING
        flow.local = (self.options.local_ip, 0)
        flow.remote = (self.options.remote_ip, self.options.connect_port)
        flow.script_local_isn = flow.script_remote_isn = flow.live_local_isn = flow.live_remote_isn = 0
        self.under_test = flow

    def accepted(self, fd: int, peer: tuple[str, int], pos: Pos) -> Flow:
        """The flow of an accepted connection."""
        for flow in reversed(self.flows):
            if flow.remote == peer and flow.state in (FlowState.PASSIVE_RECEIVED, FlowState.PASSIVE_ANSWERED):
                flow.fd = fd
                return flow
        raise Failure("syscall", pos,
                      f"accept() returned a connection from {peer[0]}:{peer[1]}, which this script "
                                      "did not open")

    # -- descriptors
    def notice_wakeups(self) -> None:
        """Keep the ready lists of all epoll descriptors up to date."""
        notice([d.watches for d in self.fds.values() if d.kind == "epoll"])

    def open_fd(self, fd: int, descriptor: Descriptor, pos: Pos) -> None:
        if fd < 0:
            raise Failure("script", pos, f"{fd} cannot be a file descriptor")
        if fd in self.fds:
            raise Failure("script", pos, f"the file descriptor {fd} is open already")
        self.fds[fd] = descriptor

    def descriptor(self, fd: int, pos: Pos) -> Descriptor:
        if fd not in self.fds:
            raise Failure("script", pos, f"the script has no open file descriptor {fd}")
        return self.fds[fd]

    def code_socket(self) -> Any:
        """The socket a %{ }% block looks at: the one under test if open, else any open one."""
        flow = self.under_test
        if flow is not None and flow.fd in self.fds and self.fds[flow.fd].flow is flow:
            return self.fds[flow.fd].sock
        for descriptor in reversed(self.fds.values()):
            if descriptor.kind == "tcp":
                return descriptor.sock
        return None
