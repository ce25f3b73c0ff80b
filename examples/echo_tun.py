"""An echo server on a TUN device.

In a network namespace made by netns/up:  netns/exec python examples/echo_tun.py
and beside it:                            netns/exec nc 192.0.2.2 7
"""

import argparse
import threading

import ustack


def echo(conn: ustack.Socket) -> None:
    with conn:
        while data := conn.recv(65536):
            conn.sendall(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tun", default="ustack0")
    parser.add_argument("--address", default="192.0.2.2/24")
    parser.add_argument("--connections", type=int, default=0, help="stop after so many (0: serve for ever)")
    args = parser.parse_args()
    with ustack.Stack(ustack.TunLink(args.tun), args.address) as stack:
        with stack.create_server((args.address.partition("/")[0], 7), backlog=16) as server:
            print("listening on", server.getsockname(), flush=True)
            served = 0
            while not args.connections or served < args.connections:
                conn, peer = server.accept()
                print("connection from", peer, flush=True)
                worker = threading.Thread(target=echo, args=(conn,))
                worker.start()
                served += 1
            worker.join()


if __name__ == "__main__":
    main()
