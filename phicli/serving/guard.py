"""What stands before every request: who asks, by which name, and whether anything is taken at the moment."""

import hmac
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phicli.serving.faults import Fault
from phicli.serving.service import Service
from phicli.serving.settings import LOOPBACK, is_loopback
from phicli.serving.vllm_guard import digest, host_name, is_foreign, may_ask

OPEN = ("/", "/health", "/favicon.ico")  # without a key; and what the page consists of
PAGE = "/page/"
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
           "cross-origin-resource-policy": "same-origin", "x-frame-options": "DENY"}


class Guard:
    """ASGI middleware. Raises nothing: what is refused gets a response."""

    def __init__(self, app: ASGIApp, service: Service, keys: Sequence[str]):
        self.app, self.service = app, service
        self._keys = [digest(key) for key in keys]
        config = service.config
        self._hosts = {*map(str.lower, config.allowed_hosts), config.host.lower(), *LOOPBACK}
        self._any_host = not config.allowed_hosts and (bool(keys) or not is_loopback(config.host))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.monotonic(), 0
        service, path = self.service, scope["path"]

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        service.requests += 1
        try:
            self._check(Headers(scope=scope), path)
            await self.app(scope, receive, told)
        except Fault as e:
            await e.response(path.startswith("/v1/messages"))(scope, receive, told)
        finally:
            service.requests -= 1
            route = getattr(scope.get("route"), "path", "none")
            service.metrics.requests.labels(route, status or "gone").inc()
            if service.tell:
                service.tell(f"{scope['method']} {route} {status or 'client gone'} {time.monotonic() - begun:.2f} s")

    def _check(self, headers: Headers, path: str) -> None:
        """Raises Fault: 401, 403, 421, 429, 503."""
        host = headers.get("host", "")
        if not self._any_host and host_name(host) not in self._hosts:
            raise Fault(421, f"'{host_name(host)[:80]}' is no name of this server; --allowed-host adds one")
        origin = headers.get("origin")
        if is_foreign(origin, host) and not may_ask(origin, self.service.config.cors_origins):
            raise Fault(403, "pages of other sites may not ask here; --cors-origin lets them")
        if path in OPEN or path.startswith(PAGE):
            return
        if self._keys and not self._known(headers):
            raise Fault(401, "no key, or a wrong one", code="invalid_api_key")
        if self.service.stopping:
            raise Fault(503, "the server is stopping")
        if self.service.requests > self.service.most_requests:
            raise Fault(429, "too many requests at once", code="rate_limit_exceeded")

    def _known(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = digest(bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0  # all of them: in constant time
