"""What Prometheus can see: counters and times of requests, numbers of the engine."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from phicli.inference.engine import Engine

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """One server's; a registry of its own."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._engine = engine
        more: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("phicli_requests", "Requests that have ended", ["path", "status"], **more)
        self.answers = Counter("phicli_answers", "Answers, by how they ended", ["model", "reason"], **more)
        self.first_token = Histogram("phicli_time_to_first_token_seconds", "From the request to the first token",
                                     buckets=SHORT, **more)
        self.next_token = Histogram("phicli_time_per_output_token_seconds", "Mean of an answer after its first token",
                                    buckets=SHORT, **more)
        self.whole = Histogram("phicli_request_seconds", "From the request to the last token", buckets=LONG, **more)
        self.prompt = Histogram("phicli_prompt_tokens_of_request", "Length of prompts", buckets=TOKENS, **more)
        self._registry.register(self)

    def collect(self) -> Iterator[Any]:
        """For the registry: what the engine counts itself."""
        stats = self._engine.stats()
        for name, text, value in (("running", "Answers that are generated", stats.running),
                                  ("waiting", "Requests that wait for a slot", stats.waiting),
                                  ("slots", "Answers that can be generated at once", stats.slots)):
            yield GaugeMetricFamily(f"phicli_{name}", text, value)
        for name, text, count in (("generated_tokens", "Tokens of answers", stats.generated_tokens),
                                  ("prompt_tokens", "Tokens of prompts", stats.prompt_tokens),
                                  ("cached_tokens", "Of these, already there", stats.cached_tokens),
                                  ("guessed_tokens", "Run before they were drawn", stats.guessed_tokens),
                                  ("accepted_tokens", "Of these, drawn", stats.accepted_tokens),
                                  ("steps", "Steps of all running answers", stats.steps),
                                  ("step_seconds", "Spent in steps", stats.step_seconds),
                                  ("prompt_seconds", "Spent in prompts", stats.prompt_seconds)):
            yield CounterMetricFamily(f"phicli_{name}", text, count)

    def text(self) -> bytes:
        return generate_latest(self._registry)
