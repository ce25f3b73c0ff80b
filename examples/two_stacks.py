"""Two stacks on a simulated wire in virtual time: 1 MB over a link with 10 ms delay and 2 % loss.

Both share one clock; a blocking call runs it until the call can go on. Seeded: every run is the same.
"""

import hashlib

import ustack


def main() -> None:
    clock = ustack.VirtualClock()
    left, right = ustack.MemoryLink.pair()
    wire = ustack.ImpairedLink(left, delay=0.010, loss=0.02, seed=7)
    with (
        ustack.Stack(wire, "192.0.2.1/24", clock=clock, seed=1) as client,
        ustack.Stack(right, "192.0.2.2/24", clock=clock, seed=2) as server,
    ):
        listener = server.create_server(("192.0.2.2", 80))
        conn = client.create_connection(("192.0.2.2", 80))
        peer, address = listener.accept()
        print("accepted", address, f"after {clock.now / 1e6:.1f} ms of virtual time")

        data = bytes(range(256)) * 4096
        sending = client.submit(conn, "sendall", data)
        got = b""
        while len(got) < len(data):
            got += peer.recv(65536)
        assert sending.done and got == data
        print(f"{len(got)} bytes in {clock.now / 1e9:.2f} s, sha256 {hashlib.sha256(got).hexdigest()[:16]}...")
        print("retransmitted:", client.nstat().get("TcpRetransSegs", 0), "segments")
        for sock in (conn, peer, listener):
            sock.close()


if __name__ == "__main__":
    main()
