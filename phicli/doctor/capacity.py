"""The model, and whether memory, disk and permissions do for each step with it."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from phicli.azure.download import target_of
from phicli.azure.reference import is_reference, parse_reference
from phicli.azure.target import cache_folder
from phicli.doctor.check_result import CheckResult, Light, Subject
from phicli.doctor.needs import UNCERTAIN
from phicli.doctor.reach import cached, cached_config, hub_cache, local_here
from phicli.errors import BadInput
from phicli.hardware.devices import available_memory, total_memory
from phicli.hub.gguf import is_gguf, judge_gguf
from phicli.hub.models import check_model, check_not_quantized, local_model, local_tokenizer, read_config
from phicli.resources import Estimate, ModelSize, existing, free_disk, step_estimates
from phicli.units import size

SMALLER = "a smaller model (--model tiny is built in), or a larger machine"


def model(subject: Subject) -> CheckResult:
    """Whether the model is here and whole, or how much would have to be fetched. Of Azure's nobody is asked."""
    known = subject.size
    about = f"{_count(known.params)} parameters, {size(known.weight_bytes)}, from {known.source}" if known else ""
    figures = {"params": known.params, "bytes": known.weight_bytes, "source": known.source} if known else {}
    if is_reference(subject.model):
        reference = parse_reference(subject.model)
        if not reference.registry:
            target_of(reference, subject.settings)
        return CheckResult(Light.GREEN, "in Azure ML; not looked at before it is fetched", figures=figures)
    here = local_model(subject.model)
    if here:
        if here.is_file():
            judge_gguf(here)
        else:
            check_not_quantized(check_model(here), here)
        return CheckResult(Light.GREEN, f"{here}: {about}", figures=figures)
    if error := subject.out_of_reach:
        return CheckResult(Light.RED, str(error), error.hint, figures)
    if config := cached_config(subject.model):
        check_not_quantized(read_config(config.parent), subject.model)
    fetched = "fetched from huggingface.co when first used" + ("" if subject.asks_hub else ", not asked for (--online)")
    place = "in the hub's cache" if cached(subject.model) else fetched
    return CheckResult(Light.GREEN, f"{subject.model}, {place}: {about or 'of unknown size'}", figures=figures)


def memory(subject: Subject) -> CheckResult:
    """Memory of the machine or its container, and what each step needs of it."""
    total, free = total_memory(), available_memory("cpu")
    wanted = step_needs(subject)
    return _compare({step: estimate.memory for step, estimate in wanted.items()}, total, free,
                    f"has {size(free)} free of {size(total)}",
                    "end other programs; finetune: --batch-size 1 --seq-len 256; quantize: --samples 32",
                    {step: (one.memory + one.extra, one.extra_from) for step, one in wanted.items()
                     if one.extra and not one.gpu})


def gpu_memory(subject: Subject) -> CheckResult:
    """Memory of the first GPU that torch uses, and what each step needs of it."""
    if not subject.wants_cuda:
        return CheckResult(Light.GREEN, "not needed: everything is computed on the CPU")
    document = subject.probes.get("torch").document or {}
    if not document.get("gpus"):
        return CheckResult(Light.RED, "torch sees no GPU", "see the line about torch")
    total, free = (document["gpus"][0][k] for k in ("total", "free"))
    wanted = step_needs(subject)
    return _compare({step: estimate.gpu for step, estimate in wanted.items()}, total, free,
                    f"has {size(free)} free of {size(total)}", "end what else uses the GPU: nvidia-smi shows it",
                    {step: (one.gpu + one.extra, one.extra_from) for step, one in wanted.items() if one.extra})


def disk(subject: Subject) -> CheckResult:
    """Free disk under the root and in the hub's cache, and what each step writes."""
    wanted = {step: estimate.disk for step, estimate in step_needs(subject).items()}
    place, free = existing(subject.root), free_disk(subject.root)
    fetch = before(subject).get("download", 0)
    if fetch:
        cache = existing(hub_cache())
        if cache.stat().st_dev == place.stat().st_dev:
            wanted = {"fetching": float(fetch), **wanted}
        elif free_disk(cache) < fetch:
            return CheckResult(Light.RED, f"{cache} has {size(free_disk(cache))} free, the model has {size(fetch)}",
                           "HF_HOME=FOLDER, a folder on another disk")
    largest, together = max(wanted.values(), default=0), sum(wanted.values())
    return _compare(wanted, free, free - (together - largest), f"{place} has {size(free)} free",
                    "free some space, or --root FOLDER on another disk")


def write_access(subject: Subject) -> CheckResult:
    """Whether files can be made in the root, the temporary folder and the caches that phicli uses."""
    caches = {"the temporary folder": Path(tempfile.gettempdir()), "the hub's cache": hub_cache(),
              "Azure's cache": cache_folder(subject.settings)}
    refused = [f"{what} ({existing(path)}): {reason}" for what, path in caches.items() if (reason := _refusal(path))]
    reason = _refusal(subject.root)
    if reason:
        return CheckResult(Light.RED, f"the root ({existing(subject.root)}): {reason}", "--root FOLDER")
    if refused:
        needed = "temporary" in refused[0] or not local_here(subject.model)
        return CheckResult(Light.RED if needed else Light.YELLOW, "; ".join(refused),
                       "TMPDIR=FOLDER, HF_HOME=FOLDER, PHICLI_AZURE_CACHE=FOLDER")
    return CheckResult(Light.GREEN, f"root {existing(subject.root)}, the temporary folder and the caches")


def step_needs(subject: Subject) -> dict[str, Estimate]:
    """As `step_estimates`; empty where the model's size is not known."""
    known = _size_of(subject)
    return step_estimates(known, subject.computes_on, subject.settings.resolve, subject.row_tokens) if known else {}


def before(subject: Subject) -> dict[str, int]:
    """What has to be done before the first step, and the bytes that it brings, as far as they are known."""
    known = _size_of(subject)
    if not known:
        return {}
    if not local_here(subject.model):
        return {"download": known.weight_bytes}
    unpack = is_gguf(subject.model) and local_tokenizer(subject.model) is None
    return {"unpack": known.weight_bytes} if unpack else {}


def _size_of(subject: Subject) -> ModelSize | None:
    """The model's size; None where it is not known, or the check of the model says why nothing can be told of it."""
    with contextlib.suppress(BadInput):
        return subject.size
    return None


def _count(number: int) -> str:
    """"3.82 billion", "5.5 million"."""
    return f"{number / 1e9:.3g} billion" if number >= 1e9 else f"{number / 1e6:.3g} million"


def _compare(wanted: dict[str, float], most: float, free: float, has: str, cure: str,
             roomy: dict[str, tuple[float, float]] | None = None) -> CheckResult:
    """red where a step needs clearly more than there could be, yellow where it needs more than is free.

    roomy: of steps that take more where much is free: how much then, and how much must be free for it.
    """
    figures: dict[str, Any] = {"free": round(free), "needs": {step: round(need) for step, need in wanted.items()}}
    if roomy:
        figures["takes_where_free"] = {step: [round(takes), round(room)] for step, (takes, room) in roomy.items()}
    also = {step: f" ({size(takes)} where {size(room)} are free)" if room > wanted[step] else f" (takes {size(takes)})"
            for step, (takes, room) in (roomy or {}).items()}
    if not wanted:
        return CheckResult(Light.YELLOW, f"{has}; what the model needs is not known",
                           "--model FOLDER, a whole one that is here", figures)
    found = f"{has}; needs about " + ", ".join(
        f"{step} {size(need)}{also.get(step, '')}" for step, need in wanted.items() if need)
    if max(wanted.values()) > UNCERTAIN * most:
        return CheckResult(Light.RED, found, SMALLER, figures)
    if max(wanted.values()) > free:
        return CheckResult(Light.YELLOW, found, cure, figures)
    return CheckResult(Light.GREEN, found, figures=figures)


def _refusal(path: Path) -> str | None:
    """Why no file can be made in a folder, or in the one above it that is there; None if it can."""
    try:
        with tempfile.NamedTemporaryFile(dir=existing(path), prefix=".phicli-"):
            return None
    except OSError as e:
        return e.strerror or str(e)
