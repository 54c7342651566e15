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


def answer(served, model):
    return served.ask(CHAT, BODY | {"model": model}).json["choices"][0]["message"]["content"]


def test_a_name_that_is_not_served_is_free(serve_root, start_server):
    """The folder has an adapter of that name, which was left out: what is added is what was asked for."""
    with start_server(serve_root, adapters=("travel",)) as found:
        for name in ("cooking", "other"):
            assert found.ask("/v1/adapters", {"name": name, "path": "travel"}).status == 201
        assert answer(found, "cooking") == answer(found, "other")
        assert found.ask("/v1/adapters/cooking", method="DELETE").status == 200
        assert found.ask("/v1/adapters", {"name": "cooking", "path": "cooking"}).status == 201
        assert answer(found, "cooking") != answer(found, "other")


def test_names_that_change_after_they_were_looked_up(changing, monkeypatch):
    """Another request was quicker: the refusal is the same as a moment later."""
    models = changing.service.models
    monkeypatch.setattr(models, "names", lambda: ["tiny"])
    reply = changing.ask("/v1/adapters", {"name": "cooking", "path": "cooking"})
    assert reply.status == 409 and "cooking" in reply.json["error"]["message"]
    monkeypatch.undo()
    models.engine.remove_adapter("cooking")
    monkeypatch.setattr(models, "adapter_of", lambda name: name)
    for reply in (changing.ask(CHAT, BODY | {"model": "cooking"}),
                  changing.ask("/v1/adapters/cooking", method="DELETE")):
        assert reply.status == 404 and reply.json["error"]["code"] == "model_not_found"


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
