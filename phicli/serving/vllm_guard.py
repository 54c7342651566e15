"""What stands before vLLM's server, whose own key guards what is under /v1 alone: key, name and origin at every path.

It goes into images as one file, so it needs nothing but Python. vLLM takes it as middleware by an option.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

KEY = "VLLM_API_KEY"
HOSTS = "PHICLI_ALLOWED_HOSTS"  # names by which the server may be called, with commas; none: any
ORIGINS = "PHICLI_ALLOWED_ORIGINS"  # of pages that may ask, with commas, or *; those that vLLM has too
OPEN = "/health"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class Guard:
    """ASGI middleware. Raises nothing: what is refused gets a response."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self.app = app
        self._key = os.environ.get(KEY, "")
        self._hosts = _listed(os.environ.get(HOSTS, "").lower())
        self._origins = _listed(os.environ.get(ORIGINS, ""))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        status, why = refused
        body = json.dumps({"error": {"message": why, "type": "invalid_request_error", "code": status}}).encode()
        told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        origin = headers.get(b"origin")
        if origin and may_ask(origin, self._origins):  # else its page is told of a network that fails
            told += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": body})

    def _refused(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if scope.get("method") == "OPTIONS" and may_ask(origin, self._origins):  # what a browser asks before
            return None
        if self._hosts and host_name(host) not in self._hosts:
            return 421, "that is no name of this server"
        if is_foreign(origin, host) and not may_ask(origin, self._origins):
            return 403, "pages of other sites may not ask here; --cors-origin lets them"
        if not self._key or scope["path"] == OPEN:
            return None
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        known = hmac.compare_digest(digest(given.strip()), digest(self._key))
        return None if known and scheme.lower() == "bearer" else (401, "no key, or a wrong one")


def _listed(text: str) -> set[str]:
    return {part for part in text.split(",") if part}


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    return host.lower()[1:].partition("]")[0] if host.startswith("[") else host.lower().partition(":")[0]


def is_foreign(origin: str | None, host: str) -> bool:
    """Whether a page of another site asks, by the headers Origin and Host."""
    return bool(origin) and str(origin).partition("://")[2] != host


def may_ask(origin: str | None, origins: Collection[str]) -> bool:
    """Whether pages of an origin are let in; "*" lets in all."""
    return origin is not None and (origin in origins or "*" in origins)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
