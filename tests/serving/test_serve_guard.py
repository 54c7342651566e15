"""Who is let in, and what is refused before the model is asked."""

import socket
import time

import pytest

from phicli.config import ServeConfig
from phicli.errors import BadInput, Missing, UsageError
from phicli.serving import bodies, server
from phicli.serving.settings import adapter_root, is_loopback, read_keys

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


def test_open_paths_and_headers(served):
    assert served.ask("/health").json["status"] == "ok"
    page = served.ask("/")
    assert page.status == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in page.headers
    assert served.ask(CHAT, BODY).headers["x-content-type-options"] == "nosniff"
    assert served.ask("/page/../server.py").status == 404 and served.ask("/page/none.js").status == 404
    assert served.ask("/nothing").json["error"]["type"] == "invalid_request_error"
    assert served.ask(CHAT).status == 405
    numbers = served.ask("/metrics").body.decode()
    assert 'phicli_requests_total{path="/v1/chat/completions",status="200"}' in numbers
    assert "phicli_time_to_first_token_seconds_bucket" in numbers and "phicli_slots 8.0" in numbers
    assert "phicli_guessed_tokens_total" in numbers and "phicli_accepted_tokens_total" in numbers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_bent_to_this_machine_is_refused(served, host):
    assert served.ask("/v1/models", host=host).status == 421
    assert served.ask("/", host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1", "[::1]:8000"])
def test_names_of_this_machine(served, host):
    assert served.ask("/v1/models", host=host).status == 200


def test_pages_of_other_sites_may_not_ask(served):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert served.ask(CHAT, BODY, origin=origin).status == 403
    assert served.ask(CHAT, BODY, origin=served.address).status == 200
    assert served.ask(CHAT, BODY, content_type="text/plain").status == 415  # what a page can send without being asked
    assert "access-control-allow-origin" not in served.ask(CHAT, method="OPTIONS", origin="https://a.example").headers


def test_pages_of_any_site_may_ask_where_a_star_says_so(serve_root, start_server):
    with start_server(serve_root, cors_origins=("*",)) as served:
        for origin in ("https://a.example", "null"):
            reply = served.ask("/v1/models", origin=origin)
            assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "*"
        assert served.ask("/v1/models", origin="https://a.example", host="evil.example").status == 421


@pytest.mark.parametrize(("origin", "meant"), [
    ("https://a.example/", "--cors-origin https://a.example"), ("https://A.example", "--cors-origin https://a.example"),
    ("a.example", None), ("https://a.example/page", None), ("https://a.example,https://b.example", None), ("", None)])
def test_an_origin_that_no_page_has_is_refused(origin, meant):
    with pytest.raises(UsageError, match="no origin") as refused:
        ServeConfig(cors_origins=("https://b.example", origin))
    assert refused.value.hint == (meant and f"phicli serve {meant}")
    assert ServeConfig(cors_origins=("https://a.example:8443", "http://[::1]:3000", "null", "*"))


@pytest.mark.parametrize(("host", "meant"), [
    ("https://A.example:8000/v1", "a.example"), ("[::1]:8000", "::1"), ("[::1]", "::1"), ("a.example:80", "a.example"),
    ("", None), ("*", None), ("a b", None)])
def test_a_name_that_no_request_has_is_refused(cli, host, meant):
    with pytest.raises(UsageError, match="no name of a machine") as refused:
        ServeConfig(allowed_hosts=("b.example", host))
    assert refused.value.hint == (meant and f"phicli serve --allowed-host {meant}")
    done = cli("serve", "--model", "tiny", "--allowed-host", host)
    assert done.code == 2 and "no name of a machine" in done.err
    assert not meant or f"  try: phicli serve --model tiny --allowed-host {meant}\n" in done.err
    assert ServeConfig(allowed_hosts=("a.example", "A_b-1", "10.0.0.7", "::1", "fe80::1", "bücher.example"))


def test_a_folder_for_adapters_is_one(tmp_path):
    for root in (tmp_path / "none", ""):
        with pytest.raises(BadInput, match="no such folder") as refused:
            adapter_root(ServeConfig(adapter_root=str(root)))
        assert refused.value.hint == "phicli serve --adapter-root FOLDER"
    assert adapter_root(ServeConfig(adapter_root=str(tmp_path))) == tmp_path
    assert adapter_root(ServeConfig(root=str(tmp_path / "none"))) == tmp_path / "none" / "ft"  # which may come later


@pytest.mark.parametrize(("body", "status", "said"), [
    (b"", 400, "JSON"), (b"{", 400, "JSON"), (b"[]", 400, "body"), (b"5", 400, "body"),
    (b'{"a": 1, "a": 2}', 400, "twice"), (b"[" * 100000, 400, ""), (b"\xff\xfe", 400, "JSON"),
    (b'{"temperature": NaN}', 400, "JSON"), (b"1" * 10000, 400, "JSON"), (b" " * (5 << 20), 413, "bytes")])
def test_bodies_that_cannot_be_read(served, body, status, said):
    for path in (CHAT, "/v1/messages", "/v1/responses", "/tokenize"):
        reply = served.ask(path, body)
        message = reply.json["error"]["message"]
        assert reply.status == status and said in message and "/" not in message
        assert reply.json.get("type") == ("error" if path == "/v1/messages" else None)


def test_halves_of_characters(served):
    for body in (b'{"model": "\\ud800", "messages": []}', b'{"messages": [{"role": "\\ud800", "content": "a"}]}',
                 b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
                 b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": "none", "stop": "\\ud800"}',
                 b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "\\ud800"}}]}'):
        for path in (CHAT, "/v1/messages", "/v1/responses"):
            assert served.ask(path, body[:-1] + b', "max_tokens": 2, "input": "a\\ud800"}').status < 500


def test_a_server_with_keys(serve_root, start_server, tmp_path):
    (tmp_path / "keys").write_text("first\n\n second \n")
    with start_server(serve_root, api_key_file=str(tmp_path / "keys"), cors_origins=("https://a.example",),
                      adapters=("travel",), name="mine") as served:
        assert served.ask("/").status == served.ask("/health").status == 200
        for headers in ({}, {"authorization": "Bearer third"}, {"x-api-key": "firs"}, {"authorization": "first"},
                        {"authorization": "Bearer "}, {"x_api_key": "\xe9"}):
            reply = served.ask("/v1/models", **headers)
            assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert served.ask("/metrics", **headers).status == 401
        assert served.ask("/v1/messages", BODY).json["error"]["type"] == "authentication_error"
        for headers in ({"authorization": "Bearer first"}, {"authorization": "bearer second"}, {"x_api_key": "first"}):
            assert [m["id"] for m in served.ask("/v1/models", **headers).json["data"]] == ["mine", "travel"]
        assert served.ask("/v1/models", host="any.example", x_api_key="first").status == 200
        before = served.ask(CHAT, method="OPTIONS", origin="https://a.example", access_control_request_method="POST",
                            access_control_request_headers="authorization,content-type")
        assert before.status == 200 and before.headers["access-control-allow-origin"] == "https://a.example"
        refused = served.ask(CHAT, BODY | {"model": "cooking"}, x_api_key="first", origin="https://a.example")
        assert refused.status == 404 and "mine, travel" in refused.json["error"]["message"]
        assert refused.headers["access-control-allow-origin"] == "https://a.example"


def test_no_key_is_for_this_machine_alone(tmp_path):
    assert [is_loopback(h) for h in ("127.0.0.1", "127.3.2.1", "::1", "localhost", "0.0.0.0", "::", "a.example")] == [
        True] * 4 + [False] * 3
    with pytest.raises(UsageError, match="no key"):
        read_keys(ServeConfig(host="0.0.0.0"))
    assert read_keys(ServeConfig(host="0.0.0.0", without_key=True)) == []
    assert read_keys(ServeConfig(host="0.0.0.0", api_key="a")) == ["a"]
    with pytest.raises(BadInput, match="empty"):
        read_keys(ServeConfig(api_key=""))
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst\n\n  second\n")
    assert read_keys(ServeConfig(api_key_file=str(keys))) == ["first", "second"]
    for wrong in ("schlüssel", "\u043a\u043b\u044e\u0447", "a\tb", "a\u00a0b"):
        keys.write_text(f"# größer\nfirst\n{wrong}\n")
        with pytest.raises(BadInput, match="beyond printable ASCII") as refused:
            read_keys(ServeConfig(api_key_file=str(keys)))
        assert refused.value.where == f"{keys}:3" and wrong not in refused.value.message
        with pytest.raises(BadInput, match="beyond printable ASCII"):
            read_keys(ServeConfig(api_key=wrong))
    for content, said in (("\n", "no key"), (None, "no such file")):
        keys.write_text(content) if content else keys.unlink()
        with pytest.raises(BadInput, match=said):
            read_keys(ServeConfig(api_key_file=str(keys)))
    keys.write_text("a")
    keys.chmod(0o666)
    with pytest.raises(BadInput, match="others can write"):
        read_keys(ServeConfig(api_key_file=str(keys)))


def test_a_queue_that_is_full(serve_root, start_server):
    with start_server(serve_root, max_batch=1, max_queue=1) as served:
        long = BODY | {"max_tokens": 1500, "ignore_eos": True, "stream": True}
        streams = [_begun(served, long) for _ in range(2)]
        assert _wait_for(lambda: served.service.engine.stats().waiting == 1)
        reply = served.ask(CHAT, BODY)
        assert reply.status == 429 and reply.headers["retry-after"]
        assert reply.json["error"]["type"] == "rate_limit_error"
        assert served.ask("/v1/messages", BODY).json["error"]["type"] == "rate_limit_error"
        for stream in streams:
            stream.close()
        assert served.idle()
        assert served.ask(CHAT, BODY).status == 200


def test_time_is_bounded(serve_root, start_server, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    with start_server(serve_root, timeout=0.3) as served:
        long = BODY | {"max_tokens": 1500, "ignore_eos": True}
        assert served.ask(CHAT, long).status == 504
        events = served.ask(CHAT, long | {"stream": True}).body.decode().strip().split("\n\n")
        assert "more time" in events[-1] and events[-1].startswith("data: {")
        half = _connected(served)
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                     b"content-length: 100\r\n\r\n{")
        silent, again = _connected(served), _connected(served)
        silent.sendall(b"GET / HT")
        again.sendall(b"GET /page/icon.svg HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HT")
        assert silent.recv(100) == b"" and b" 408 " in half.recv(100)
        while again.recv(1000):
            pass
        assert served.idle()


def test_an_address_that_is_taken(served, serve_root, start_server):
    for address, hint in (({"port": served.place[1]}, "--port 0"), ({"host": "192.0.2.1"}, "--host 127.0.0.1")):
        with pytest.raises(Missing, match="cannot be listened at") as refused:
            server._listen(ServeConfig(**address))
        assert refused.value.hint == f"phicli serve {hint}"


def _connected(served):
    return socket.create_connection(served.place, timeout=10)


def _begun(served, body):
    """A stream of which the first bytes have come."""
    import json

    found, data = _connected(served), json.dumps(body).encode()
    found.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  b"content-length: %d\r\n\r\n%s" % (len(data), data))
    assert b" 200 " in found.recv(100)
    return found


def _wait_for(true, seconds=10):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()
