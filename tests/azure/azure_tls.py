"""Serving over TLS on this machine, with the tests' own certificates."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Server(ThreadingHTTPServer):
    request_queue_size, daemon_threads = 64, True

    def handle_error(self, request, client_address):
        """A client that gave up is nothing to report."""


def serve_tls(handler: type[BaseHTTPRequestHandler], certificates: Path) -> int:
    """Serve in a thread; returns the port."""
    server = _Server(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]
