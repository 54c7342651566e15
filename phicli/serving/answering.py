"""Responses that run an answer: as a whole or as a stream, until it ends, the client leaves or time is up."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from phicli.errors import PhicliError
from phicli.serving.bridge import Answer
from phicli.serving.choices import Choice, Delta
from phicli.serving.faults import Fault, fault_of
from phicli.serving.job import Job
from phicli.serving.service import Service

SEND_SECONDS = 30  # in which a client has to take what was sent


class Writer(Protocol):
    """How a protocol writes an answer. Events of a stream are (name or None, document)."""

    anthropic: bool
    fields: Mapping[str, str]  # see `fault_of`

    def begin(self) -> Iterable["Event"]: ...
    def step(self, delta: Delta, choice: Choice) -> Iterable["Event"]: ...
    def end(self, choices: list[Choice]) -> Iterable["Event"]: ...
    def failed(self, fault: Fault) -> Iterable["Event"]: ...
    def whole(self, choices: list[Choice]) -> dict[str, Any]: ...


Event = tuple[str | None, dict[str, Any] | str]


class ClientGone(Exception):
    """Nobody waits for the answer any longer, or takes it too slowly."""


class Answering(Response):
    """The response to a request whose rows were started."""

    def __init__(self, service: Service, job: Job, answer: Answer, writer: Writer, begun: float):
        super().__init__()
        self.service, self.job, self.answer, self.writer, self.begun = service, job, answer, writer, begun
        self.choices = [Choice(job, number) for number in range(len(job.requests))]
        self.first = 0.0  # when the first token was there

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.service.answers.add(self.answer)
        async with self.answer:
            try:
                stream = self.job.asked.stream
                await _while_connected(receive, self._stream(send) if stream else self._whole(scope, receive, send))
            except ClientGone:
                scope["phicli.abort"]()
            finally:
                self.service.answers.discard(self.answer)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._time(), aclosing(self._deltas()) as deltas:
                async for _ in deltas:
                    pass
            response: Response = JSONResponse(self.writer.whole(self.choices))
        except (PhicliError, Fault, TimeoutError) as e:
            response = fault_of(e, self.writer.fields).response(self.writer.anthropic)
        await _taken(response(scope, receive, send))

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
                   (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send(send, self.writer.begin())
        try:
            async with self._time(), aclosing(self._deltas()) as deltas:
                async for together in deltas:
                    events = [event for delta in together
                              for event in self.writer.step(delta, self.choices[delta.choice])]
                    await self._send(send, events)
            await self._send(send, self.writer.end(self.choices))
        except (PhicliError, Fault, TimeoutError) as e:
            await self._send(send, self.writer.failed(fault_of(e, self.writer.fields)))
        await _taken(send({"type": "http.response.body", "body": b""}))

    async def _send(self, send: Send, events: Iterable[Event]) -> None:
        if body := "".join(map(_sse, events)).encode():
            await _taken(send({"type": "http.response.body", "body": body, "more_body": True}))

    def _time(self) -> asyncio.Timeout:
        return asyncio.timeout(self.begun + self.service.config.timeout - time.monotonic())

    async def _deltas(self) -> AsyncGenerator[list[Delta], None]:
        """What comes, as it comes. Raises PhicliError: a row has failed."""
        async for batch in self.answer.batches():
            self.first = self.first or time.monotonic()
            yield _merged([self.choices[row].step(event) for row, event in batch])
        self._count()

    def _count(self) -> None:
        """For the metrics, of an answer that has come to its end."""
        metrics, now = self.service.metrics, time.monotonic()
        for choice in self.choices:
            assert choice.finish
            metrics.answers.labels(self.job.model, choice.reason).inc()
            if choice.finish.completion_tokens > 1:
                metrics.next_token.observe((now - self.first) / (choice.finish.completion_tokens - 1))
            metrics.prompt.observe(choice.finish.prompt_tokens)
        metrics.first_token.observe(self.first - self.begun)
        metrics.whole.observe(now - self.begun)


def _merged(deltas: list[Delta]) -> list[Delta]:
    """Text of one choice that came at once, as where the client is slow, in one delta."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if last and last.choice == delta.choice and not last.finish:
            found[-1] = Delta(delta.choice, last.text + delta.text, last.calls + delta.calls,
                              last.logprobs + delta.logprobs, delta.finish)
        else:
            found.append(delta)
    return found


def _sse(event: Event) -> str:
    name, document = event
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


async def _taken(sending: Any) -> None:
    """Raises ClientGone: the client does not read, or is gone."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await sending
    except (TimeoutError, OSError):
        raise ClientGone from None


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do something until it is done or the client leaves. Raises ClientGone."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientGone
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
