"""A server in a thread of the tests' process, on the built-in model with two adapters, one of which knows tools."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from phicli.config import ServeConfig

# In the style of Qwen's: calls are JSON between <tool_call> and </tool_call>
TOOLS_TEMPLATE = """{%- if tools %}{{- '<|system|>\\nTools:' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}
{%- endfor %}{{- '<|end|>\\n' }}{%- endif %}
{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|user|>\\nResult: ' + m.content + '<|end|>\\n' }}
{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Served:
    """A running server."""

    address: str
    service: object
    root: Path

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        return host, int(port)

    def ask(self, path, body=None, method=None, **headers) -> Reply:
        """One request; body: a document, or bytes as they are."""
        connection = http.client.HTTPConnection(*self.place, timeout=60)
        data = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        usual = {"content-type": "application/json"} if data is not None else {}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("POST" if data is not None else "GET"), path, data, usual | given)
        answer = connection.getresponse()
        reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return reply

    def idle(self, seconds=10) -> bool:
        """Whether nothing runs or waits any longer, within that time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            stats = self.service.engine.stats()
            if not stats.running and not stats.waiting and not self.service.requests:
                return True
            time.sleep(0.01)
        return False


@contextmanager
def serving(root: Path, **settings):
    """A server on ROOT/onnx-ao until the block ends."""
    from phicli.serving.server import opened

    config = ServeConfig(model="tiny", root=str(root), port=0, device="cpu", **settings)
    with opened(config) as ready:
        ended = []
        thread = threading.Thread(target=lambda: ended.append(ready.run()))
        thread.start()
        try:
            yield Served(ready.address, ready.service, root)
        finally:
            ready.service.stopping = True
            thread.join(20)
    assert ended == [0], "the server did not end"


@pytest.fixture(scope="session")
def start_server():
    return serving


@pytest.fixture(scope="session")
def serve_root(two_graphs, tmp_path_factory) -> Path:
    """A root to serve: `travel` has a chat template that knows tools, `ft` has the adapters as PEFT folders."""
    root = tmp_path_factory.mktemp("serve")
    shutil.copytree(two_graphs / "onnx-ao", root / "onnx-ao")
    (root / "ft").mkdir()
    for name in ("cooking", "travel"):
        shutil.copytree(two_graphs / name, root / "ft" / name)
    (root / "onnx-ao" / "adapters" / "travel.jinja").write_text(TOOLS_TEMPLATE)
    return root


@pytest.fixture(scope="session")
def served(serve_root):
    with serving(serve_root) as found:
        yield found
