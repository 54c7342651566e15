"""A CONNECT proxy: known host names lead to local ports, every other host is refused and remembered.

It can also make the line slow, and cut it.
"""

import re
import select
import socket
import socketserver
import threading
import time

CHUNK = 64 << 10


class Proxy(socketserver.ThreadingTCPServer):
    """routes: (pattern of a host, local port).

    refused: hosts asked for and refused. sent: bytes from clients to hosts that match `counted`, since `reset`.
    cut_after: bytes after which the line to `counted` hosts is dead; None: never. delay: seconds per chunk to them.
    """

    allow_reuse_address, daemon_threads = True, True
    request_queue_size = 64

    def __init__(self, routes: list[tuple[str, int]], counted: str):
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.routes, self.counted, self.counting = routes, counted, threading.Lock()
        self.refused: list[str] = []
        self.hosts: set[str] = set()
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.sent, self.received, self.cut_after, self.delay = 0, 0, None, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def dead(self) -> bool:
        return self.cut_after is not None and self.sent + self.received >= self.cut_after

    def passed(self, up: int, down: int) -> None:
        with self.counting:
            self.sent += up
            self.received += down
        if self.delay:
            time.sleep(self.delay)

    def handle_error(self, request, client_address):
        """A client that goes away is nothing to report."""


class _Tunnel(socketserver.StreamRequestHandler):
    rbufsize = 0  # what follows the CONNECT belongs to the tunnel
    server: Proxy

    def handle(self):
        method, address, *_ = [*self.rfile.readline().decode("latin1").split(), "", ""]
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass
        host = address.rpartition(":")[0]
        port = next((port for pattern, port in self.server.routes if re.fullmatch(pattern, host)), None)
        self.server.hosts.add(host)
        if method != "CONNECT" or port is None:
            self.server.refused.append(address)
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            return
        counted = bool(re.fullmatch(self.server.counted, host))
        if counted and self.server.dead:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.relay(upstream, counted)

    def relay(self, upstream: socket.socket, counted: bool) -> None:
        client = self.connection
        while True:
            ready, _, _ = select.select([client, upstream], [], [], 1)
            if counted and self.server.dead:
                return
            for source in ready:
                data = source.recv(CHUNK)
                if not data:
                    return
                if counted:
                    self.server.passed(*(len(data), 0) if source is client else (0, len(data)))
                (upstream if source is client else client).sendall(data)
