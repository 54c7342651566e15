"""A model of the hub from a server that talks as the hub does: its config.json is judged before weights are fetched."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "a" * 40
FILES = {"config.json": b'{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}',
         "model.safetensors": b"0" * 1000}
RESOLVE = """
from phicli.errors import PhicliError
from phicli.hub.models import resolve_model
try:
    resolve_model("owner/served")
except PhicliError as e:
    print(type(e).__name__, e.message)
"""


class Hub(BaseHTTPRequestHandler):
    """One model, `owner/served`, as far as fetching it goes."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/api/models/owner/served/revision/main":
            self.answer(json.dumps({"id": "owner/served", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/owner/served/tree/{COMMIT}":
            self.answer(json.dumps([{"type": "file", "path": name, "size": len(data), "oid": name}
                                    for name, data in FILES.items()]).encode())
        else:
            self.answer(FILES[path.rpartition("/")[2]])

    do_HEAD = do_GET

    def answer(self, data):
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), "ETag": f'"{len(data)}"', "X-Repo-Commit": COMMIT,
                           "Content-Type": "application/json"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    """Its address, and what it was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_family_that_is_refused_is_not_fetched(hub, tmp_path):
    endpoint, asked = hub
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint}
    done = subprocess.run([sys.executable, "-c", RESOLVE], text=True, check=True, env=environment,
                          stdout=subprocess.PIPE)
    assert done.stdout == "BadInput a mixture of experts (num_local_experts)\n"
    assert any("config.json" in path for path in asked) and not any("safetensors" in path for path in asked)
