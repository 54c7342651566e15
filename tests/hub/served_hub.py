"""A server that talks as the Hugging Face hub does, as far as fetching one repository, `owner/served`, goes."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@contextmanager
def served(kind: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that it is asked for, with the range of bytes. kind: "models" or "datasets"."""
    asked: list[str] = []
    place = {"kind": kind, "prefix": "" if kind == "models" else f"/{kind}", "files": files, "asked": asked}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (_Hub,), place))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


class _Hub(BaseHTTPRequestHandler):
    kind: str
    prefix: str
    files: Mapping[str, bytes]
    asked: list[str]

    def do_GET(self):
        path, range_ = self.path.partition("?")[0], self.headers.get("Range", "")
        if self.command == "GET":
            self.asked.append(f"{self.path} {range_}".rstrip())
        if path == f"/api/{self.kind}/owner/served/revision/main":
            self.answer(json.dumps({"id": "owner/served", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/{self.kind}/owner/served/tree/{COMMIT}":
            self.answer(json.dumps([{"type": "file", "path": name, "size": len(data), "oid": _tag(data)}
                                    for name, data in self.files.items()]).encode())
        elif path.startswith(f"{self.prefix}/owner/served/resolve/"):
            name = path.rpartition("/")[2]
            if name not in self.files:
                self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})
            elif range_ and not name.startswith("whole"):
                first, last = map(int, range_.removeprefix("bytes=").split("-"))
                part, length = self.files[name][first: last + 1], len(self.files[name])
                self.answer(part, 206, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{length}"})
            else:
                self.answer(self.files[name])
        else:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, data: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "ETag": f'"{_tag(data)}"', "X-Repo-Commit": COMMIT,
                           "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


def _tag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
