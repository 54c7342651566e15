"""The settings of commands that measure what was made, check it, prove it and search for better."""

from dataclasses import dataclass
from typing import Any, ClassVar

from phicli.config import shared
from phicli.config.bases import OfModel, OfRows
from phicli.config.setting import LARGEST, again, setting
from phicli.config.steps import EvaluateConfig, QuantizeConfig
from phicli.errors import UsageError
from phicli.units import bytes_of

CONTENDERS = ("torch", "genai", "llama.cpp", "yardstick")
MOST_NUMBERS = 32
REPORT_FORMATS = ("html", "markdown")


def _values(default: tuple[str, ...], what: str, panel: str = "") -> Any:
    return setting(default, f"{what} to try", metavar="A,B", panel=panel)



@dataclass(frozen=True)
class BenchmarkConfig(OfModel):
    """Settings of `phicli benchmark`; lists of numbers are texts such as "16,512"."""

    STEP: ClassVar[str] = "benchmark"

    path: str | None = setting(None, "Folder of the ONNX model [default: ROOT/onnx-ao]", once=True, path=True,
                               recorded=False)
    adapters: tuple[str, ...] = setting((), "Adapter to measure beside the model without; may be repeated [default: "
                                        "all of the model]", flags=("--adapter", "-a"), metavar="NAME")
    prompt_tokens: tuple[str, ...] = setting(("16", "128"), "Lengths of prompts in tokens", metavar="N,N…")
    new_tokens: int = setting(64, "Number of tokens to decode after each prompt", minimum=2)
    depth: tuple[str, ...] = setting(("0",), "Tokens of context before the prompt, not timed", metavar="N,N…")
    batch: tuple[str, ...] = setting(("1",), "Rows at once", metavar="N,N…")
    threads: tuple[str, ...] = setting((), "Threads of the CPU [default: one a core]", metavar="N,N…")
    rounds: int = setting(5, "Number of times each is measured", minimum=1)
    against: tuple[str, ...] = setting((), "What to measure in turns with it: torch, genai (its own build), llama.cpp "
                                       "(a GGUF of phicli export), or NAME=PATH with another model; yardstick (always "
                                       "the same work, on the CPU); may be repeated",
                                       metavar="NAME[=PATH]", path=True, reference=True)
    baseline: str | None = setting(None, "Figures of an earlier run (--json) to compare with", once=True,
                                   metavar="FILE", path=True)
    format: str = setting("table", "What is printed; all but table with llama-bench's names of columns", once=True,
                          choices=("table", "md", "csv", "json", "jsonl"))
    output: str | None = setting(None, "File for the figures, JSON [default: ROOT/benchmark.json]", once=True,
                                 flags=("--output", "-o"), metavar="FILE", path=True, recorded=False,
                                 panel=shared.RUNNING)
    device: str = shared.device()
    provider: str = shared.provider()
    kernels: str = shared.kernels()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("prompt_tokens", 1), ("depth", 0), ("batch", 1), ("threads", 1)):
            self.numbers(name, least)
        if max(self.numbers("batch")) > 1 and max(self.numbers("depth")):
            raise UsageError("several rows take their whole prompt at once", where="--batch", hint="--depth 0")
        for one in self.against:
            if one.partition("=")[0] not in CONTENDERS:
                raise UsageError(f"'{one}' is not one of {', '.join(CONTENDERS)}", where="--against")

    def numbers(self, name: str, least: int = 0) -> list[int]:
        """A setting's numbers. Raises UsageError: none, or below the least."""
        texts = [part for text in getattr(self, name) for part in text.split(",")]
        found = [int(text) for text in texts if text.strip().isdecimal() and least <= int(text) <= LARGEST]
        if len(found) != len(texts) or len(texts) > MOST_NUMBERS:
            said = f"needs at most {MOST_NUMBERS} whole numbers from {least} on, not {','.join(texts)[:40]!r}"
            raise UsageError(said, where=f"--{name.replace('_', '-')}")
        return found


@dataclass(frozen=True)
class GateConfig(OfRows):
    """Settings of `phicli gate`."""

    STEP: ClassVar[str] = "gate"

    max_kl: float | None = setting(None, "Limit of the KL divergence to the original, of the model without adapters",
                                   minimum=0)
    min_top1: float | None = setting(None, "Limit of its top-1 agreement with that, from 0 to 1", minimum=0, maximum=1)
    max_perplexity: float | None = setting(None, "Limit of the perplexity with each adapter", minimum=1)
    max_size: str | None = setting(None, "Limit of the size of model and adapter", metavar="2.4GB")
    min_speed: float | None = setting(None, "Limit of the decoding speed in tokens/s", minimum=0)
    tolerance: float = setting(1.0, "Factor on how much worse than the accepted build is let through", minimum=0)
    speed: bool = setting(True, "Measure the speed", flags=("--speed/--no-speed",),
                          panel=shared.RUNNING)
    accept: bool = setting(False, "Keep this build's figures, which later ones are compared with", once=True,
                           flags=("--accept",), recorded=False)
    accepted: str | None = setting(None, "File of the accepted build's figures [default: ROOT/accepted.json]",
                                   metavar="FILE", path=True, recorded=False, panel=shared.RUNNING)
    eval_data: str = shared.eval_data()
    algorithm: str = again(QuantizeConfig, "algorithm", flags=("--algorithm",))  # -a is the adapter
    adapter: str | None = shared.adapter()
    rows: int | None = again(EvaluateConfig, "rows")
    seq_len: int = again(EvaluateConfig, "seq_len")
    device: str = shared.device()
    kernels: str = shared.kernels()

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            bytes_of(self.max_size or "0")
        except ValueError as e:
            raise UsageError(str(e), where="--max-size") from None


@dataclass(frozen=True)
class SearchConfig(OfModel):
    """Settings of `phicli search`: values to try, limits, and what of the steps' settings is often given along."""

    STEP: ClassVar[str] = "search"

    algorithm: tuple[str, ...] = _values(("awq", "rtn"), "Quantization algorithms")
    group_size: tuple[str, ...] = _values(("128", "32"), "Group sizes")
    head: tuple[str, ...] = _values(("int8", "int4"), "Precisions of the output projection")
    embeddings: tuple[str, ...] = _values((), "Precisions of the token embeddings", "Searching")
    kv_cache: tuple[str, ...] = _values((), "Precisions of the key/value cache", "Searching")
    lora_r: tuple[str, ...] = _values((), "With an adapter in each trial: ranks")
    learning_rate: tuple[str, ...] = _values((), "With an adapter in each trial: learning rates")
    max_size: str | None = setting(None, "Largest size of the ONNX folder, such as 2.4GB", metavar="SIZE")
    max_kl: float | None = setting(None, "Largest KL to the original, without an adapter", minimum=0)
    max_perplexity: float | None = setting(None, "Largest perplexity of held-out rows", above=0,
                                          panel="Searching")
    min_speed: float | None = setting(None, "Lowest speed of answers, in tokens a second", minimum=0)
    goal: str | None = setting(None, "What to have best within them [default: perplexity with adapters, else kl]",
                               choices=("kl", "perplexity", "size", "speed"))
    trials: int = setting(20, "Most trials", minimum=1, panel="Searching")
    rows: int | None = again(EvaluateConfig, "rows")
    data: tuple[str, ...] = shared.data()
    eval_data: str = shared.eval_data()
    device: str = shared.device()
    seed: int = shared.seed()
    force: bool = shared.force()


@dataclass(frozen=True)
class VerifyConfig(OfModel):
    """Settings of `phicli verify`."""

    STEP: ClassVar[str] = "verify"

    place: str | None = setting(None, "What to verify: a root, a stage's folder, evaluation.json [default: the root]",
                                once=True, argument=True, metavar="PLACE", path=True)
    inputs: tuple[str, ...] = setting((), "File or folder that an input is in which is no longer where it was; may be "
                                      "repeated", once=True, flags=("--input", "-i"), metavar="PATH", path=True)


@dataclass(frozen=True)
class ReportConfig(OfModel):
    """Settings of `phicli report`."""

    STEP: ClassVar[str] = "report"

    format: str = setting("html", "Form of the page", once=True, choices=REPORT_FORMATS)
    benchmark: tuple[str, ...] = setting((), "JSON of a benchmark, phicli's or llama-bench's; may be repeated "
                                         "[default: ROOT/benchmark.json]", once=True, metavar="FILE", path=True)
    output: str | None = setting(None, "File to write [default: ROOT/report.html, or ROOT/report.md]", once=True,
                                 flags=("--output", "-o"), metavar="FILE", path=True)
