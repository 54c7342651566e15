"""From the engine's thread to the event loop: one wake-up a step, whatever the number of rows."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from phicli.inference.engine import Engine, Finish, Handle, Piece, Request

Event = tuple[int, Piece | Finish]  # of which of an answer's rows


class Bridge:
    """Hands what the engine delivers to the answers that wait for it. Made, and used, in the loop."""

    def __init__(self, engine: Engine):
        self.engine, self._loop = engine, asyncio.get_running_loop()
        self._arrived: deque[tuple[Answer, int, Piece | Finish]] = deque()
        self._woken = False

    def deliver(self, answer: "Answer", row: int, event: Piece | Finish) -> None:
        """On the engine's thread."""
        self._arrived.append((answer, row, event))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._spread)

    def _spread(self) -> None:
        self._woken = False  # before reading: what comes from here on wakes again
        while self._arrived:
            answer, row, event = self._arrived.popleft()
            answer.take(row, event)


class Answer:
    """Rows of one request, from their start to the end of the last.

    Use it as an async context manager: whatever ends the block ends the rows too.

    Raises:
        BadInput, Busy: as `Engine.submit`; rows that were started before are ended.
    """

    def __init__(self, bridge: Bridge, requests: Sequence[Request]):
        self._events: list[Event] = []
        self._waiting = asyncio.Event()
        self._left = len(requests)
        self._handles: list[Handle] = []
        try:
            for row, request in enumerate(requests):
                self._handles.append(bridge.engine.submit(
                    request, lambda event, row=row: bridge.deliver(self, row, event)))  # type: ignore[misc]
        except BaseException:
            self.cancel()
            raise

    def take(self, row: int, event: Piece | Finish) -> None:
        self._events.append((row, event))
        self._left -= isinstance(event, Finish)
        self._waiting.set()

    def cancel(self) -> None:
        for handle in self._handles:
            handle.cancel()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """What came since the last time was asked, at least one event, until each row has ended."""
        while self._left or self._events:
            await self._waiting.wait()
            self._waiting.clear()
            events, self._events = self._events, []
            if events:
                yield events

    async def __aenter__(self) -> "Answer":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._left:
            self.cancel()
