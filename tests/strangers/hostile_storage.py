"""A blob storage that says and sends whatever a test wants, over TLS, and otherwise what is right."""

import re
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from azure_tls import serve_tls

Headers = dict[str, str]
Answer = tuple[int, Headers, Iterable[bytes]]


class Storage:
    """files: name -> content, announced without a hash. sizes: what is announced instead of the content's length.

    twist: changes the answer to a range. pages: the answer to a list, from its marker: (names, next marker).
    ranges: how many have been sent.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.twist: Callable[[int, Headers, bytes], Answer] = lambda status, headers, body: (status, headers, [body])
        self.pages: Callable[[str], tuple[list[str], str]] = lambda marker: (list(self.files), "")
        self.ranges, self.lists = 0, 0

    def list(self, marker: str) -> bytes:
        self.lists += 1
        names, following = self.pages(marker)
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Etag>0x1</Etag><BlobType>BlockBlob</BlobType><Content-Length>"
            f"{self.sizes.get(name, len(self.files.get(name, b'')))}</Content-Length></Properties></Blob>"
            for name in names)
        return (f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{blobs}</Blobs>'
                f"<NextMarker>{following}</NextMarker></EnumerationResults>").encode()

    def blob(self, name: str, wanted: str) -> Answer:
        self.ranges += 1
        content = self.files[name]
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
        body = content[first:last + 1]
        return self.twist(206, {
            "etag": '"0x1"', "x-ms-blob-type": "BlockBlob", "content-type": "application/octet-stream",
            "content-length": str(len(body)), "content-range": f"bytes {first}-{last}/{len(content)}"}, body)


def serve_storage(storage: Storage, certificates: Path) -> int:
    """Serve over TLS in a thread; returns the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            address = urlsplit(self.path)
            query = parse_qs(address.query)
            if query.get("comp") == ["list"]:
                body = storage.list(query.get("marker", [""])[0])
                answer = 200, {"content-type": "application/xml", "content-length": str(len(body))}, [body]
            else:
                answer = storage.blob(unquote(address.path.split("/", 2)[2]), self.headers["x-ms-range"])
            self.send_response_only(answer[0])
            for name, value in answer[1].items():
                self.send_header(name, value)
            self.end_headers()
            for piece in answer[2]:
                self.wfile.write(piece)
                self.wfile.flush()
            self.close_connection = "content-length" not in answer[1]

    return serve_tls(Handler, certificates)
