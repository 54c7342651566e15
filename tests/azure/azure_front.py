"""A door before Azurite that answers with a fault where a test wants one, and passes everything else on."""

import http.client
import ssl
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from azure_stub import Azure
from azure_tls import serve_tls

HOP = {"transfer-encoding", "connection", "keep-alive", "content-length"}


def serve_front(azure: Azure, certificates: Path, storage_port: int) -> int:
    """Serve over TLS in a thread; returns the port."""
    trust = ssl.create_default_context(cafile=str(certificates / "ca.pem"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            fault = azure.fault_for(f"{self.command} storage{self.path.partition('&sig=')[0]}")
            if fault:
                return self.send(fault.status, {"x-ms-error-code": fault.code, **fault.headers}, b"")
            onward = http.client.HTTPSConnection("127.0.0.1", storage_port, context=trust)
            try:
                onward.request(self.command, self.path, body or None, dict(self.headers))
                answer = onward.getresponse()
                headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP}
                length = answer.getheader("content-length") if self.command == "HEAD" else None
                return self.send(answer.status, headers, answer.read(), length)
            finally:
                onward.close()

        def send(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
            self.send_response_only(status)
            for name, value in {**headers, "content-length": length or str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    return serve_tls(Handler, certificates)
