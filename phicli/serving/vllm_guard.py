"""What stands before vLLM's server, whose own key guards what is under /v1 alone: a key and a name, at every path.

It goes into images as one file, so it needs nothing but Python. vLLM takes it as middleware by an option.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY = "VLLM_API_KEY"
HOSTS = "PHICLI_ALLOWED_HOSTS"  # names by which the server may be called, with commas; none: any
OPEN = "/health"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class Guard:
    """ASGI middleware. Raises nothing: what is refused gets a response."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self.app = app
        self._key = os.environ.get(KEY, "")
        self._hosts = {host for host in os.environ.get(HOSTS, "").lower().split(",") if host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(scope) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        status, why = refused
        body = json.dumps({"error": {"message": why, "type": "invalid_request_error", "code": status}}).encode()
        await send({"type": "http.response.start", "status": status,
                    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._hosts and _name(headers.get(b"host", "")) not in self._hosts:
            return 421, "that is no name of this server"
        if not self._key or scope["path"] == OPEN or scope.get("method") == "OPTIONS":
            return None
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        known = hmac.compare_digest(_digest(given.strip()), _digest(self._key))
        return None if known and scheme.lower() == "bearer" else (401, "no key, or a wrong one")


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    return host.lower()[1:].partition("]")[0] if host.startswith("[") else host.lower().partition(":")[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
