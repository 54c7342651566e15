"""What stands before vLLM's server, in front of an application that answers everything; by a real HTTP server."""

import contextlib
import socket
import threading
import urllib.error
import urllib.request

import pytest
import uvicorn
from starlette.middleware.cors import CORSMiddleware

from phicli.serving.vllm_guard import Guard


async def application(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})


@contextlib.contextmanager
def served(app):
    listener = socket.create_server(("127.0.0.1", 0))  # from now on requests wait until they are answered
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def asked(address, path="/invocations", method="POST", **headers):
    """Status and headers of the answer."""
    request = urllib.request.Request(address + path, method=method,
                                     headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def status(*asking, **headers):
    return asked(*asking, **headers)[0]


def test_every_path_but_health_asks_for_the_key(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "right")
    monkeypatch.delenv("PHICLI_ALLOWED_HOSTS", raising=False)
    with served(Guard(application)) as address:
        for path in ("/invocations", "/ping", "/tokenize", "/metrics", "/openapi.json", "/v1/models",
                     "/health/../invocations"):
            assert status(address, path) == 401, path
            assert status(address, path, Authorization="Bearer wrong") == 401
            assert status(address, path, Authorization="Basic right") == 401
            assert status(address, path, Authorization="Bearer right") == 200
        assert status(address, "/health", "GET") == 200


def test_pages_of_other_sites_ask_where_their_origin_is_allowed_and_read_why_not(monkeypatch):
    """As by phicli's own server, with the guard around vLLM's own answers to browsers."""
    mine = "https://mine.example"
    monkeypatch.setenv("VLLM_API_KEY", "right")
    monkeypatch.setenv("PHICLI_ALLOWED_HOSTS", "127.0.0.1")
    monkeypatch.setenv("PHICLI_ALLOWED_ORIGINS", f"https://other.example,{mine}")
    with served(Guard(CORSMiddleware(application, [mine], ["POST"], ["*"]))) as address:
        before = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        for headers, expected in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Host": "evil.example"}, 421),
                                  ({"Authorization": "Bearer right"}, 200)):
            found, told = asked(address, Origin=mine, **headers)
            assert (found, told["access-control-allow-origin"], told["vary"]) == (expected, mine, "Origin")
            found, told = asked(address, "/invocations", "OPTIONS", Origin=mine, **before, **headers)
            assert (found, told["access-control-allow-origin"]) == (200, mine)
        for origin in ("https://evil.example", "null", f"{mine}.evil", "http://127.0.0.1:1"):
            found, told = asked(address, Origin=origin, Authorization="Bearer right")
            assert found == 403 and "access-control-allow-origin" not in told
            assert status(address, "/invocations", "OPTIONS", Origin=origin, **before) == 403
        assert status(address, Origin=address, Authorization="Bearer right") == 200  # a page of its own
    monkeypatch.setenv("PHICLI_ALLOWED_ORIGINS", "*")
    with served(Guard(CORSMiddleware(application, ["*"], ["POST"], ["*"]))) as address:
        assert status(address, Origin=mine, Authorization="Bearer right") == 200
        assert status(address, Origin=mine) == status(address) == 401


@pytest.mark.parametrize(("host", "expected"), [
    ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("LocalHost:1", 200), ("evil.example", 421),
    ("", 421), ("127.0.0.1.evil.example", 421), ("[evil", 421)])
def test_other_names_are_refused_where_names_are_given(monkeypatch, host, expected):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("PHICLI_ALLOWED_HOSTS", "localhost,127.0.0.1,::1")
    with served(Guard(application)) as address:
        assert status(address, "/v1/models", "GET", Host=host) == expected
        monkeypatch.delenv("PHICLI_ALLOWED_HOSTS")
    with served(Guard(application)) as address:
        assert status(address, "/v1/models", "GET", Host="any.example") == 200


def test_a_socket_without_the_key_is_closed(monkeypatch):
    import asyncio

    monkeypatch.setenv("VLLM_API_KEY", "right")
    sent = []

    async def ask():
        async def send(message):
            sent.append(message)

        await Guard(application)({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)

    asyncio.run(ask())
    assert sent == [{"type": "websocket.close", "code": 1008}]
