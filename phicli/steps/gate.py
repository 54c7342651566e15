"""Whether a build may go out: its figures against limits, and against those of the last accepted build."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phicli.artifacts.names import ACCEPTED, FINETUNED, GENAI_CONFIG, ONNX_FOLDER
from phicli.artifacts.places import check_file_place
from phicli.artifacts.stages import read_sealed, versions, write_sealed
from phicli.config.measuring import BenchmarkConfig, GateConfig
from phicli.config.setting import settings_of
from phicli.config.steps import EvaluateConfig
from phicli.errors import BadInput, Missing, UsageError
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.steps.accepted import YARDSTICK, Check, compared, is_busy, slower
from phicli.steps.benchmark import benchmark
from phicli.steps.evaluate import evaluate
from phicli.units import bytes_of, number, size

LIMITS = ("max_kl", "min_top1", "max_perplexity", "max_size", "min_speed")
SPEED_TRIES = 3  # times that speed is measured before a build is called slower: another program may run beside it


class GateResult(NamedTuple):
    """checks: all that was looked at. accepted: the file with the accepted build's figures; None without one."""

    checks: list[Check]
    accepted: Path | None

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]


@subdued()
def gate(config: GateConfig, progress: Progress = SILENT) -> GateResult:
    """Measure what is under the root, as `evaluate` and `benchmark` do, and check it.

    With `accept` the figures are kept, if they are within the limits, in place of those of the last accepted build.

    Raises:
        Missing: no limit, and no build accepted yet; or as `evaluate`. BadInput: something that cannot be measured, or
        a damaged file of figures.
    """
    place = Path(config.accepted or config.root_folder / ACCEPTED)
    before = None if config.accept else _read(place)
    limited = [name for name in LIMITS if getattr(config, name) is not None]
    if not (limited or before or config.accept):
        raise Missing("no limit given, and no build accepted yet", where=place,
                      hint="phicli gate --accept", also=["limits such as --max-kl 0.05"])
    if config.accept:
        check_file_place(place)
        _read(place)  # what is no file of ours stays
    found = facts(config, progress)
    checks = [*_within(config, found), *(compared(found, before, config.tolerance) if before else ())]
    checks += _speed(config, found, before, progress)
    result = GateResult(checks, place if before or config.accept else None)
    if config.accept and not result.failed:
        write_sealed(place, found)
    return result


def facts(config: GateConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """What is kept of a build."""
    shared = settings_of(EvaluateConfig).keys() & settings_of(GateConfig).keys()
    document = evaluate(EvaluateConfig(**{name: getattr(config, name) for name in shared}), progress,
                        kept=config.rows is None)  # figures of a part of the rows are no evaluation of the build
    stages = {stage["stage"]: {key: stage[key] for key in (
        "adapter", "onnx", "perplexity", "kl", "top1", "kl_torch", "top1_torch", "bytes", "blocks")}
        for stage in document["stages"] if not stage["missing"]}
    return {"stages": stages, **{key: document[key] for key in ("tokens_digest", "rows", "tokens", "blocks")},
            "ends": _ends(config.root_folder / ONNX_FOLDER), "adapters": _adapters(config.root_folder, stages),
            "speed": {}, "fastest": {}, "machine": "", "versions": versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _ends(folder: Path) -> list[int]:
    """Ids of the tokens at which answers of the ONNX model end; none where there is no such model."""
    from phicli.export.genai_config import read_config

    if not (folder / GENAI_CONFIG).is_file():
        return []
    ends = read_config(folder)["model"]["eos_token_id"]
    return sorted(ends if isinstance(ends, list) else [ends])


def _adapters(root: Path, stages: Mapping[str, Any]) -> dict[str, int]:
    """Linears that each adapter changes; those that are more than LoRA are left out."""
    from phicli.checkpoints.peft_folder import read_peft

    found = {}
    for name in sorted({stage["adapter"] for stage in stages.values() if stage["adapter"]}):
        with suppress(BadInput):
            found[name] = sum(bool(np.any(lora.a)) and bool(np.any(lora.b))
                              for lora in read_peft(root / FINETUNED / name).values())
    return found


def _within(config: GateConfig, found: Mapping[str, Any]) -> Iterator[Check]:
    """Checks against the limits: of the ONNX stages, or where there are none of the quantized ones."""
    there = {name: stage for name, stage in found["stages"].items() if name != "original"}
    delivered = {name: stage for name, stage in there.items() if stage["onnx"]} or there
    plain = {name: stage for name, stage in delivered.items() if not stage["adapter"]}
    tuned = {name: stage for name, stage in delivered.items() if stage["adapter"]} or plain
    most, least = config.max_kl, config.min_top1
    for name, stage in list(plain.items())[-1:]:
        if stage["kl"] is None and (most is not None or least is not None):
            raise UsageError("the original is not there to compare with", where="--max-kl, --min-top1")
        if most is not None:
            yield Check("KL to original", name, number(stage["kl"], 3), number(most), stage["kl"] <= most,
                        "--max-kl")
        if least is not None:
            yield Check("top-1 as original", name, f"{stage['top1']:.1%}", f"{least:.1%}", stage["top1"] >= least,
                        "--min-top1")
    for name, stage in tuned.items() if config.max_perplexity is not None else ():
        most = config.max_perplexity or 0.0
        yield Check("perplexity", name, number(stage["perplexity"]), number(most), stage["perplexity"] <= most,
                    "--max-perplexity")
    for name, stage in delivered.items() if config.max_size is not None else ():
        bytes_most = bytes_of(config.max_size or "")
        yield Check("size", name, size(stage["bytes"]), size(bytes_most), stage["bytes"] <= bytes_most,
                    "--max-size")


def _speed(config: GateConfig, found: dict[str, Any], before: Mapping[str, Any] | None,
           progress: Progress) -> list[Check]:
    """Checks of the speed, where it is asked for and there is something to measure; what was measured is added."""
    wanted = config.min_speed is not None or config.accept or (before and before["speed"])
    if not (config.speed and wanted and (config.root_folder / ONNX_FOLDER / GENAI_CONFIG).is_file()):
        return []
    limits: list[Check] = []
    for _ in range(SPEED_TRIES):
        rows = benchmark(BenchmarkConfig(
            model=config.model, root=config.root, path=str(config.root_folder / ONNX_FOLDER), prompt_tokens=("16",),
            adapters=(config.adapter,) if config.adapter else (), device=config.device, kernels=config.kernels,
            against=(YARDSTICK,)), progress)["rows"]
        decoded = [row for row in rows if row["n_gen"]]
        found["speed"] = {row["contender"]: [*found["speed"].get(row["contender"], ()), *row["samples_ts"]]
                          for row in decoded}
        found["fastest"] = {row["contender"]: max(found["fastest"].get(row["contender"], 0.0), 1e3 / row["p5_itl_ms"])
                            for row in decoded}
        found["machine"] = f"{rows[0]['gpu_info'] or rows[0]['cpu_info']}, {rows[0]['n_threads']} threads"
        limits = [Check("tokens/s", name, number(max(rates)), number(config.min_speed), max(rates) >= config.min_speed,
                        "--min-speed")
                  for name, rates in found["speed"].items() if config.min_speed is not None and name != YARDSTICK]
        same = before is not None and before["machine"] == found["machine"] and all(
            YARDSTICK in one.get("fastest", {}) for one in (before, found))
        checks = slower(found["fastest"], before["fastest"], config.tolerance) if before and same else []
        if all(check.passed for check in limits + checks):
            break
    else:
        if same and is_busy(found["speed"], found["fastest"]):
            progress.warn("other programs keep this machine busy: speed is not compared with the accepted build's")
            checks = []
    if before and before["speed"] and not same:
        why = (f"was measured on {before['machine']}" if before["machine"] != found["machine"] else
               "was kept by an earlier phicli, without the fastest tokens (phicli gate --accept keeps them)")
        progress.warn(f"the accepted build's speed {why}: it is not compared")
    return limits + checks


def _read(place: Path) -> dict[str, Any] | None:
    """The facts in a file; None where there is none. Raises BadInput: others, or damaged."""
    found = read_sealed(place, "phicli gate --accept")
    if found is not None and not {"tokens_digest", "stages", "speed"} <= found.keys():
        raise BadInput("no figures of an accepted build", where=place, hint="move it away, or name another --accepted")
    return found
