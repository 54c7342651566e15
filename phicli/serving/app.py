"""The ASGI application: which path does what."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from phicli.errors import PhicliError
from phicli.serving.answering import Answering
from phicli.serving.bodies import Body, body_of, parsed
from phicli.serving.bridge import Answer, Bridge
from phicli.serving.faults import Fault, fault_of
from phicli.serving.files import page_routes
from phicli.serving.guard import Guard
from phicli.serving.job import Job
from phicli.serving.protocols.anthropic import CountBody, MessagesBody, MessagesWriter
from phicli.serving.protocols.openai_chat import ChatBody, ChatWriter
from phicli.serving.protocols.openai_completions import CompletionBody, CompletionWriter
from phicli.serving.protocols.openai_responses import ResponsesBody, ResponsesWriter
from phicli.serving.protocols.tokens import DetokenizeBody, TokenizeBody
from phicli.serving.service import Service

Result = TypeVar("Result")
Endpoint = Callable[[Request], Any]
PROTOCOLS: dict[str, tuple[type[Any], type[Any]]] = {
    "/v1/chat/completions": (ChatBody, ChatWriter),
    "/v1/completions": (CompletionBody, CompletionWriter),
    "/v1/responses": (ResponsesBody, ResponsesWriter),
    "/v1/messages": (MessagesBody, MessagesWriter),
}


class AdapterBody(Body):
    name: str
    path: str


def make_app(service: Service, keys: Sequence[str] = ()) -> Starlette:
    """The application of a service. keys: that clients have to send one of; none: everyone is let in."""
    routes = [*(Route(path, _answers(service, *protocol), methods=["POST"]) for path, protocol in PROTOCOLS.items()),
              Route("/v1/messages/count_tokens", _tells(service, CountBody, _count), methods=["POST"]),
              Route("/tokenize", _tells(service, TokenizeBody, TokenizeBody.document), methods=["POST"]),
              Route("/detokenize", _tells(service, DetokenizeBody, DetokenizeBody.document), methods=["POST"]),
              Route("/v1/adapters", _tells(service, AdapterBody, _add, 201), methods=["POST"]),
              *_plain_routes(service), *(page_routes() if service.config.page else [])]
    cors = [Middleware(CORSMiddleware, allow_origins=service.config.cors_origins, allow_headers=["*"],
                       allow_methods=["GET", "POST", "DELETE"])] if service.config.cors_origins else []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        service.bridge = Bridge(service.engine)
        yield
        service.pool.shutdown(cancel_futures=True)

    handlers: dict[Any, Any] = dict.fromkeys((Fault, PhicliError, HTTPException, Exception), _refused)
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers | {ClientDisconnect: _gone},
                     middleware=[*cors, Middleware(Guard, service=service, keys=keys)])


def _plain_routes(service: Service) -> list[Route]:
    models = service.models

    async def health(request: Request) -> Response:
        return JSONResponse(service.health(), 503 if service.stopping else 200)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def listed(request: Request) -> Response:
        found = [models.document(name) for name in models.names()]
        return JSONResponse({"object": "list", "data": found, "has_more": False, "first_id": found[0]["id"],
                             "last_id": found[-1]["id"]})

    async def one(request: Request) -> Response:
        return JSONResponse(models.document(request.path_params["name"]))

    async def remove(request: Request) -> Response:
        name = request.path_params["name"]
        await _in_pool(service, lambda: models.remove(name))
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    async def embeddings(request: Request) -> Response:
        raise Fault(501, "models that write text give no embeddings worth having; a model made for them does",
                    code="not_supported")

    return [Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/health", health), Route("/metrics", metrics), Route("/v1/models", listed),
            Route("/v1/models/{name:path}", one), Route("/v1/adapters/{name}", remove, methods=["DELETE"])]


def _answers(service: Service, form: type[Any], writer: type[Any]) -> Endpoint:
    """What answers with tokens of the model. writer: the `Writer`."""

    async def endpoint(request: Request) -> Response:
        begun = time.monotonic()

        def start(content: bytes) -> tuple[Job, Answer]:
            body = parsed(form, content)
            try:
                job = body.job(service)
                return job, Answer(service.bridge, job.requests)
            except (Fault, PhicliError) as e:
                raise fault_of(e, writer.fields) from e

        async with body_of(service, request) as content:
            job, answer = await _in_pool(service, lambda: start(content))
        return Answering(service, job, answer, writer(job), begun)

    return endpoint


def _tells(service: Service, form: type[Any], tell: Callable[[Any, Service], dict[str, Any]], status: int = 200
           ) -> Endpoint:
    """What answers without the model."""

    async def endpoint(request: Request) -> Response:
        async with body_of(service, request) as content:
            return JSONResponse(await _in_pool(service, lambda: tell(parsed(form, content), service)), status)

    return endpoint


async def _in_pool(service: Service, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(service.pool, work)


def _count(body: CountBody, service: Service) -> dict[str, Any]:
    return {"input_tokens": len(body.job(service).requests[0].ids)}


def _add(body: AdapterBody, service: Service) -> dict[str, Any]:
    service.models.add(body.name, body.path)
    return service.models.document(body.name)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Fault(error.status_code, f"{request.method} {request.url.path}: {error.detail}"[:200])
    return fault_of(error).response(request.url.path.startswith("/v1/messages"))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
