"""PyTCP (threads, TAP) behind a small server: echo (7), discard (9), chargen (19), HTTP (80).

usage: server.py DEVICE ADDRESS/LEN GATEWAY MAC
"""

from __future__ import annotations

import sys
import threading
import time

from pytcp import TcpIpStack, config
from pytcp.lib import socket

ANSWER_KEEP = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world\n"
ANSWER_LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nHello, world\n"
BULK = bytes(65536)
MOST_UNSENT = 1 << 20       # its send() only appends to a buffer without a limit
START_SECONDS = 6.5         # its address is claimed by ARP first


def bulk_out(conn: socket.Socket) -> None:
    while conn.send(BULK) >= 0:
        while conn._tcp_session and len(conn._tcp_session._tx_buffer) > MOST_UNSENT:
            time.sleep(0.001)


def handle(conn: socket.Socket, port: int) -> None:
    if port == 19:
        bulk_out(conn)
    while data := conn.recv():
        if port == 7:
            conn.send(data)
        elif port == 80:
            last = b"close" in data
            conn.send((ANSWER_LAST if last else ANSWER_KEEP) * data.count(b"\r\n\r\n"))
            if last:
                break
    conn.close()


def serve(host: str, port: int) -> None:
    listener = socket.socket(family=socket.AF_INET4, type=socket.SOCK_STREAM)
    listener.bind((host, port))
    listener.listen()
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=handle, args=(conn, port), daemon=True).start()


def main() -> None:
    device, address, gateway, mac = sys.argv[1:]
    config.LOG_CHANEL.clear()
    config.IP6_SUPPORT = False
    stack = TcpIpStack(interface=device, ip4_address=address, ip4_gateway=gateway, mac_address=mac)
    stack.start()
    for port in (7, 9, 19, 80):
        threading.Thread(target=serve, args=(address.partition("/")[0], port), daemon=True).start()
    time.sleep(START_SECONDS)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
