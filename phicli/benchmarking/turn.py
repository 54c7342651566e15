"""One measurement: a prompt, then one token at a time. Imports nothing of a library that runs models."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phicli.inference.runners import Runner

WARM = 4  # first tokens whose times do not count: a CUDA graph is captured meanwhile
FIRST_ID, IDS = 10, 390  # token ids of prompts; which they are makes no difference


@dataclass(frozen=True)
class Case:
    """What is run: `depth` tokens of context that are not timed, a prompt, `new` tokens, in so many rows at once."""

    prompt: int
    new: int
    depth: int = 0
    rows: int = 1

    @property
    def ids(self) -> list[int]:
        """Of context and prompt."""
        return [FIRST_ID + at % IDS for at in range(self.depth + self.prompt)]


@dataclass(frozen=True)
class Turn:
    """Seconds to the first token, and of each token after it; peak memory of the process and of the GPU in bytes."""

    first: float
    steps: tuple[float, ...]
    memory: int | None = None
    gpu_memory: int | None = None

    @property
    def counted(self) -> Sequence[float]:
        """The steps that count."""
        return self.steps[WARM:] if len(self.steps) > 2 * WARM else self.steps

    @property
    def rate(self) -> float:
        """Decoded tokens a second, of one row."""
        return len(self.counted) / sum(self.counted)

    def told(self) -> dict[str, Any]:
        return asdict(self)


def measure(runner: "Runner", case: Case) -> Turn:
    """Run a case. Raises whatever the runner does."""
    ids = case.ids
    runner.start(len(ids) + case.new, len(ids), case.rows)
    if case.depth:
        runner.append(ids[: case.depth])
    begun = time.perf_counter()
    runner.append(ids[case.depth :])
    runner.next()
    at = time.perf_counter()
    first, steps = at - begun, []
    for _ in range(case.new - 1):
        runner.next()
        now = time.perf_counter()
        steps.append(now - at)
        at = now
    return Turn(first, tuple(steps))


def cases(prompts: Sequence[int], new: int, depths: Sequence[int], rows: Sequence[int]) -> Iterator[Case]:
    """Every combination."""
    for row, depth, prompt in product(rows, depths, prompts):
        yield Case(prompt, new, depth, row)
