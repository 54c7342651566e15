"""Who runs when: prompts in parts between steps of the rows that run, newcomers of all adapters in turn."""

import threading
import time
from collections import OrderedDict, deque
from dataclasses import replace

from phicli.inference.engine.request import Busy, EngineStats
from phicli.inference.engine.row import Row, as_error
from phicli.inference.engine.rows import Rows
from phicli.inference.engine.speculation import Speculation
from phicli.inference.engine.teller import Teller


class Scheduler:
    """A thread that runs rows until it is closed.

    Args:
        rows: what runs them. slots: rows that run at once. most_waiting: further ones that may wait.
        speculation: what runs some of them with guesses of their next tokens.
    """

    def __init__(self, rows: Rows, slots: int, most_waiting: int, speculation: Speculation | None = None):
        self._rows, self._most_waiting, self._speculation = rows, most_waiting, speculation
        self._teller = Teller() if rows.apart else None
        self._wake = threading.Condition()  # of what is below
        self._waiting: OrderedDict[str | None, deque[Row]] = OrderedDict()
        self._closed, self._free = False, slots  # free: places that no row has
        self._stats = EngineStats(0, 0, slots, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0)
        self._begun: deque[Row] = deque()  # of the thread alone: rows whose prompts run
        self._running: list[Row] = []
        self._thread = threading.Thread(target=self._run, name="phicli-engine", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        """Raises Busy: too many wait, or it is closed."""
        with self._wake:
            if self._closed:
                raise Busy("the engine is closed")
            row.later = self._teller or row.later
            waiting = sum(not row.cancelled for queue in self._waiting.values() for row in queue)
            if waiting >= self._most_waiting + self._free:  # some get a place as soon as the thread looks
                raise Busy(f"{self._most_waiting} requests are waiting already", hint="ask again later")
            self._waiting.setdefault(row.request.adapter, deque()).append(row)
            self._wake.notify()

    def cancel(self, row: Row) -> None:
        with self._wake:
            row.cancelled = True
            self._wake.notify()

    def stats(self) -> EngineStats:
        with self._wake:
            return replace(self._stats, running=len(self._running) + len(self._begun),
                           waiting=sum(map(len, self._waiting.values())))

    def close(self) -> None:
        """End all requests as cancelled, then the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if not (threading.current_thread() is self._thread or (self._teller and self._teller.here)):
            self._thread.join()  # which waits for the teller

    def _run(self) -> None:
        fault = None
        try:
            while self._next():
                self._prefill()
                self._step()
        except Exception as e:  # of the places themselves, such as a GPU that is gone: no client waits for ever
            fault = as_error(e)
        with self._wake:
            self._closed = True
            left = [*self._begun, *self._running, *(row for queue in self._waiting.values() for row in queue)]
            self._waiting.clear()
        for row in left:
            row.finish("error" if fault else "cancelled", fault)
        if self._teller:
            self._teller.close()
        self._rows.close()

    def _next(self) -> bool:
        """Wait for work, end what was cancelled, and give newcomers their places; False once it is closed."""
        with self._wake:
            while not (self._closed or self._waiting or self._begun or self._running):
                self._wake.wait()
            gone = [row for queue in self._waiting.values() for row in queue if row.cancelled]
            for row in gone:
                self._waiting[row.request.adapter].remove(row)
            new = [found for _ in range(self._free) if (found := self._first())]
            self._free -= len(new)
            closed = self._closed
        for row in gone:
            row.finish("cancelled")
        for row in [row for row in [*self._begun, *self._running] if row.cancelled]:
            self._end(row, "cancelled")
        for row in new:
            try:
                self._rows.place(row)
            except Exception as e:
                row.finish("error", as_error(e))
                self._end(row, "error")
                continue
            self._begun.append(row)
            self._count(requests=1, prompt_tokens=row.prompt_tokens, cached_tokens=row.cached)
        return not closed

    def _first(self) -> Row | None:
        """The request that waits longest, of the adapter whose turn it is."""
        while self._waiting:
            adapter, queue = self._waiting.popitem(last=False)
            row = queue.popleft() if queue else None
            if queue:
                self._waiting[adapter] = queue
            if row is not None:
                return row
        return None

    def _prefill(self) -> None:
        """Run the next part of the prompt that has waited longest."""
        if not self._begun:
            return
        row, begun = self._begun[0], time.perf_counter()
        try:
            logits = self._rows.prefill(row)
            self._count(prompt_seconds=time.perf_counter() - begun)
            if not row.left:
                self._begun.popleft()
                self._running.append(row)
                row.take(logits)
                self._count(generated_tokens=1)
        except Exception as e:
            row.finish("error", as_error(e))
        if row.finished:
            self._end(row, "stop")

    def _step(self) -> None:
        """A token for each row that runs, or more."""
        rows = list(self._running)
        guesses = self._speculation.guesses(rows) if self._speculation and rows else {}
        for row, guess in guesses.items():
            self._run_guess(row, guess)
        if plain := [row for row in rows if row not in guesses]:
            self._step_together(plain)

    def _step_together(self, rows: list[Row]) -> None:
        begun = time.perf_counter()
        try:
            logits = self._rows.step(rows)
        except Exception as e:
            for row in rows:
                row.finish("error", as_error(e))
                self._end(row, "error")
            return
        seconds = time.perf_counter() - begun
        if self._speculation:
            self._speculation.times.add(len(rows), 1, seconds)
        self._count(steps=1, step_seconds=seconds, generated_tokens=len(rows))
        for row, own in zip(rows, logits, strict=True):
            try:
                row.take(own)
            except Exception as e:
                row.finish("error", as_error(e))
            if row.finished:
                self._end(row, "stop")

    def _run_guess(self, row: Row, guess: list[int]) -> None:
        assert self._speculation
        begun, tokens, accepted = time.perf_counter(), len(row.tokens), row.accepted
        try:
            self._speculation.run(row, guess)
        except Exception as e:
            row.finish("error", as_error(e))
        self._count(steps=1, step_seconds=time.perf_counter() - begun, generated_tokens=len(row.tokens) - tokens,
                    guessed_tokens=len(guess), accepted_tokens=row.accepted - accepted)
        if row.finished:
            self._end(row, "stop")

    def _end(self, row: Row, reason: str) -> None:
        """Give the place of a row back, and tell its client unless it knows."""
        if row in self._begun:
            self._begun.remove(row)
        if row in self._running:
            self._running.remove(row)
        self._rows.leave(row)
        with self._wake:
            self._free += 1
        row.finish(reason)  # type: ignore[arg-type]

    def _count(self, **more: float) -> None:
        with self._wake:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

