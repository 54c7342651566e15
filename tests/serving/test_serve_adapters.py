"""Adapters come and go while answers run."""

import http.client
import json
import shutil
import threading

import pytest

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Where should I go?"}], "max_tokens": 30, "temperature": 0}


@pytest.fixture
def changing(serve_root, start_server, tmp_path):
    """A server of its own, whose adapters change."""
    root = tmp_path / "root"
    shutil.copytree(serve_root, root)
    with start_server(root) as found:
        yield found


def test_adapters_come_and_go(changing):
    wanted = changing.ask(CHAT, BODY | {"model": "cooking"}).json["choices"][0]["message"]["content"]
    stream = http.client.HTTPConnection(*changing.place, timeout=60)
    stream.request("POST", CHAT, json.dumps(BODY | {"model": "cooking", "stream": True, "ignore_eos": True,
                                                    "max_tokens": 250}), {"content-type": "application/json"})
    running = stream.getresponse()
    assert running.readline().startswith(b"data: ")
    assert changing.ask("/v1/adapters/cooking", method="DELETE").json["deleted"]
    assert changing.ask(CHAT, BODY | {"model": "cooking"}).status == 404
    assert changing.ask("/v1/adapters/cooking", method="DELETE").status == 404
    assert running.read().endswith(b"data: [DONE]\n\n")  # what runs goes on
    added = changing.ask("/v1/adapters", {"name": "stew", "path": "cooking"})
    assert added.status == 201 and added.json["id"] == "stew", added.json
    assert [m["id"] for m in changing.ask("/v1/models").json["data"]] == ["tiny", "stew", "travel"]
    found = changing.ask(CHAT, BODY | {"model": "stew"}).json["choices"][0]["message"]["content"]
    assert found == wanted
    assert changing.ask("/v1/adapters", {"name": "stew", "path": "cooking"}).status == 409


@pytest.mark.parametrize(("name", "path", "said"), [
    ("a", "../onnx-ao", "--adapter-root"), ("a", "/etc", "--adapter-root"), ("a", "none", "no such adapter"),
    ("../a", "cooking", "name"), ("", "cooking", "name"), ("a" * 65, "cooking", "name"),
    ("a", "link", "--adapter-root")])
def test_what_cannot_be_added(served, name, path, said):
    link = served.root / "ft" / "link"
    if not link.exists():
        link.symlink_to("/etc")
    reply = served.ask("/v1/adapters", {"name": name, "path": path})
    assert reply.status == 400 and said in reply.json["error"]["message"]


def test_the_base_stays(served):
    assert served.ask("/v1/adapters/tiny", method="DELETE").status == 400
    assert served.ask("/v1/adapters", {"name": "tiny", "path": "cooking"}).status == 409


def test_many_at_once_each_get_their_own(served):
    """Eight clients, adapters mixed: what each gets is what it gets alone."""
    alone = {model: served.ask(CHAT, BODY | {"model": model}).json["choices"][0]["message"]["content"]
             for model in ("tiny", "cooking", "travel")}
    wrong = []

    def ask(model):
        found = served.ask(CHAT, BODY | {"model": model}).json["choices"][0]["message"]["content"]
        if found != alone[model]:
            wrong.append((model, found))

    threads = [threading.Thread(target=ask, args=(list(alone)[n % 3],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and len(set(alone.values())) == 3
