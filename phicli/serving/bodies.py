"""Bodies of requests: bounded in size and time, JSON that means one thing only, fields of the right kinds."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from phicli.artifacts.reading import parse_json
from phicli.errors import BadInput
from phicli.serving.faults import Fault
from phicli.serving.service import ALL_BODIES, Service

BODY_SECONDS = 30  # in which a body has to be there
Form = TypeVar("Form", bound="Body")
is_field = re.compile(r"(?!(str|int|float|bool)$)[a-z0-9_]+$").match  # in a place of pydantic's, not a kind of value


class Body(BaseModel):
    """Fields of a body. Those that are not known are ignored: clients send many that do not matter here.

    instead: fields of other servers without which the answer would be another one -> what is asked in their place.
    """

    model_config = ConfigDict(strict=True, extra="ignore")
    instead: ClassVar[Mapping[str, str | None]] = {}


@asynccontextmanager
async def body_of(service: Service, request: Request) -> AsyncIterator[bytes]:
    """The body of a request, counted as long as the block lasts.

    Raises:
        Fault: 408, 413, 415 (no JSON), 429 (too many others are held). ClientDisconnect: the client left.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Fault(415, "the body must be JSON, with the header content-type: application/json")
    parts, held = list[bytes](), 0
    try:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    held += len(part)
                    service.bodies += len(part)
                    if held > service.config.max_body:
                        raise Fault(413, f"the body has more than {service.config.max_body:,} bytes")
                    if service.bodies > max(ALL_BODIES, service.config.max_body):
                        raise Fault(429, "too much is asked at once")
                    parts.append(part)
        except TimeoutError:
            raise Fault(408, "the body did not come") from None
        yield b"".join(parts)
    finally:
        service.bodies -= held


def parsed(form: type[Form], content: bytes) -> Form:
    """The body as a form. Raises Fault: 400, with the field that is wrong."""
    try:
        document = parse_json(content, "body")
        _check_instead(form, document)
        return form.model_validate(document)
    except BadInput as e:
        raise Fault(400, e.message) from None
    except RecursionError:
        raise Fault(400, "nested too deeply") from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(takewhile(is_field, map(str, first["loc"]))) or "body"
        raise Fault(400, f"{field}: {first['msg']}", param=field) from None


def _check_instead(form: type[Body], document: Any) -> None:
    """Raise Fault: 400, for a field that asks for something that is not done here."""
    for name, other in form.instead.items():
        if isinstance(document, dict) and document.get(name):
            raise Fault(400, f"{name}: is not known here" + (f"; {other} is" if other else ""), param=name)
