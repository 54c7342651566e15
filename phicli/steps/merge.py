"""The merge stage: from a checkpoint and an adapter to a published model with the adapter in its weights."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.names import ADAPTER_CONFIG, FINETUNED, MERGED
from phicli.artifacts.origins import still_there
from phicli.checkpoints.adapter_settings import NoSlot, read_settings
from phicli.config.bases import OfRows
from phicli.config.exporting import MergeConfig
from phicli.config.steps import QUANTIZE_ALGORITHMS, QuantizeConfig
from phicli.errors import BadInput, UsageError
from phicli.export.sources import Source
from phicli.hardware.devices import choose_device
from phicli.hub.datasets import data_inputs, find_sources
from phicli.hub.models import check_model, local_model, read_config, read_headers, resolve_model
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.quantization import CALIBRATION
from phicli.quantization.groups import choose_group_size
from phicli.resources import announce, estimate_merge, size_of_folder
from phicli.steps.finetune import find_adapter
from phicli.steps.quantize import OWN_ROWS
from phicli.workflow.plan import Plan, StageResult

# Settings that int4 is made with.
QUANTIZING = (*OfRows.__annotations__, "calibration", "own_rows", "refine", "samples", "seq_len", "device", "seed")


@subdued()
def merge(config: MergeConfig, progress: Progress = SILENT) -> StageResult:
    """Put an adapter into the weights of a model.

    LoRA is merged tensor by tensor, other kinds by peft with the whole model in memory. An AWQ base is left for the
    model that it was made from, if that is still there; else an int4 base is unpacked. With the precision "int4" the
    result is quantized as `quantize` does it.

    Returns:
        the model's folder, `output` or `root`/merged/NAME (NAME-int4), and its manifest.

    Raises:
        UsageError: several adapters, none named. BadInput: an adapter for another model, or one that cannot be merged.
        Missing: no space, no memory.
    """
    config = with_rows(config)
    plan = plan_merge(config, progress)
    done = plan.finished(config.force, progress)
    if done:
        return StageResult(plan.target, done)
    base, source = plan.sources["base"], Source(plan.target.name, plan.sources["adapter"])
    plain = _is_plain(source, base, progress)
    awq = plan.sources.get("trained_on")
    if awq and not plain:
        raise BadInput("was trained on an AWQ checkpoint, with its scales; only LoRA can be put into the original",
                       where=source.folder, hint=f"--base {awq}")
    if plain:
        from phicli.checkpoints.linears import linear_shapes

        source.check(linear_shapes(base), plan.inputs["trained_on" if awq else "base"], progress)
    announce("merge", estimate_merge(size_of_folder(base), streamed=plain), plan.target, progress)
    with plan.locked(config.force, progress) as done:
        if done:
            return StageResult(plan.target, done)
        with plan.publishing() as (fresh, manifest):
            if config.precision == "float":
                _to_float(plan, source, plain, fresh, progress)
            else:
                with tempfile.TemporaryDirectory(prefix=".float-", dir=fresh.parent) as scratch:
                    _to_float(plan, source, plain, Path(scratch), progress)
                    manifest.quality = _to_int4(Path(scratch), fresh, config, progress)
    return StageResult(plan.target, manifest)


def _to_float(plan: Plan, source: Source, plain: bool, output: Path, progress: Progress) -> None:
    from phicli.quantization.merging import merge_any, merge_lora

    base, awq = plan.sources["base"], plan.sources.get("trained_on")
    if awq:
        from phicli.export.portable_adapter import for_original

        progress.note(f"merging into {base}; the adapter was trained on {awq}, whose scales are undone")
        merge_lora(base, for_original(source.loras, awq, base), output, progress)
    elif plain:
        merge_lora(base, source.loras, output, progress)
    else:
        merge_any(base, source.folder, output, progress)
    if source.template.is_file():
        shutil.copyfile(source.template, output / source.template.name)


def _to_int4(merged: Path, output: Path, config: MergeConfig, progress: Progress) -> dict[str, Any]:
    """Quantize a merged model as `quantize` does; scales are searched anew, as a grid that fits the base rounds small
    updates away."""
    from phicli.quantization.algorithms import algorithm_of

    size, remarks = choose_group_size(read_headers(merged), None, (), True, merged)
    for remark in remarks:
        progress.note(remark)
    if not config.own_rows:
        progress.warn("the rows that the adapter was trained on are not known: what it learnt is kept best by a "
                      "calibration on rows like them, --own-rows DATA")
    given = {name: getattr(config, name) for name in QUANTIZING}
    wanted = QuantizeConfig(model=str(merged), root=config.root, group_size=size, **given)
    return algorithm_of("awq", "phicli")(merged, output, choose_device(config.device), wanted, progress)


def _is_plain(source: Source, base: Path, progress: Progress) -> bool:
    """Whether the adapter is LoRA on linears of layers, and nothing else."""
    try:
        for remark in source.check_kind(base):
            progress.warn(remark)
    except NoSlot as e:
        progress.note(f"{e.message}: peft merges it, with the whole model in memory")
        return False
    return True


def plan_merge(config: MergeConfig, progress: Progress = SILENT) -> Plan:
    """What `merge` would make of the same settings; raises what it raises for names, base and adapter."""
    adapter = choose_adapter(config.adapter, config.root_folder / FINETUNED)
    stages.check_whole(adapter)
    base = choose_base(config, adapter, progress)
    sources, settings = {"base": base, "adapter": adapter}, {"precision": "float"}
    known, quantized = _known_base(adapter), read_config(base).get("quantization_config")
    if config.base and known and not quantized and known != stages.fingerprint(base):
        awq = config.root_folder / "awq"
        if awq.is_dir() and stages.fingerprint(awq) == known:
            sources["trained_on"] = awq
    elif not config.base and (original := _original(config, adapter, base)):
        sources |= {"base": original, "trained_on": base}
    if config.precision == "int4":
        sources |= {"calibration": Path(config.calibration or CALIBRATION)} | config.row_sources()
        sources |= data_inputs(find_sources(config.own_rows, progress=progress), OWN_ROWS)
        settings = config.recorded()
    return Plan("merge", Path(config.output or merged_folder(config, adapter)), sources, settings, apart=OWN_ROWS)


def _original(config: MergeConfig, adapter: Path, awq: Path) -> Path | None:
    """The model that an AWQ checkpoint was made from, if it is still there and the adapter can be fitted to it."""
    manifest = stages.read_manifest(awq)
    if manifest is None or (read_config(awq).get("quantization_config") or {}).get("quant_method") != "awq":
        return None
    try:
        Source(adapter.name, adapter).check_kind(awq)
    except NoSlot:
        return None
    if place := still_there("model", awq):
        return place
    given = local_model(config.model)
    return given if given and stages.fingerprint(given) == manifest.inputs.get("model") else None


def with_rows(config: MergeConfig) -> MergeConfig:
    """The settings with the rows to calibrate on: those that the adapter was trained on, as it read them."""
    adapter = choose_adapter(config.adapter, config.root_folder / FINETUNED)
    manifest = stages.read_manifest(adapter)
    if config.precision != "int4" or config.own_rows or manifest is None:
        return config
    names = [name for name in manifest.inputs if name.split()[0] == "data"]
    found = [str(place) for name in names if (place := still_there(name, adapter))]
    read = {name: manifest.settings[name] for name in config.row_settings() if manifest.settings.get(name)}
    return config.but(own_rows=tuple(found), **(read if found else {}))


def merged_folder(config: MergeConfig, adapter: Path) -> Path:
    suffix = "" if config.precision == "float" else f"-{config.precision}"
    return config.root_folder / MERGED / (adapter.resolve().name + suffix)


def choose_adapter(reference: str | None, trained: Path) -> Path:
    """The folder of an adapter that is called by its name under `trained`, or by its folder; None: the only one there.

    Raises:
        UsageError: none named, and there is not just one. BadInput: no such adapter.
    """
    if reference is None:
        found = sorted(path.parent for path in trained.glob(f"*/{ADAPTER_CONFIG}") if path.parent.name[0] != ".")
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise UsageError(f"which adapter? Under {trained} there are: {names}", where="--adapter",
                             hint="--adapter NAME, or FOLDER")
        return found[0]
    folder = find_adapter(reference, trained)
    read_settings(folder)
    return folder


def choose_base(config: MergeConfig, adapter: Path, progress: Progress) -> Path:
    """The checkpoint to merge into.

    Raises:
        BadInput: the adapter was trained on another one than those that are there.
    """
    if config.base:
        return resolve_model(config.base, progress)
    known = _known_base(adapter)
    if known is None:
        return resolve_model(config.model, progress)
    for folder in _candidates(config, progress):
        if stages.fingerprint(folder) == known:
            stages.check_whole(folder)
            check_model(folder)
            return folder
    raise BadInput("the model that it was trained on is neither under the root nor the one of --model", where=adapter,
                   hint="--base FOLDER")


def _known_base(adapter: Path) -> str | None:
    """The fingerprint of the checkpoint that an adapter was trained on, if `finetune` made it."""
    manifest = stages.read_manifest(adapter)
    return None if manifest is None else manifest.inputs.get("base")


def _candidates(config: MergeConfig, progress: Progress) -> Iterator[Path]:
    for algorithm in QUANTIZE_ALGORITHMS:
        if (config.root_folder / algorithm).is_dir():
            yield config.root_folder / algorithm
    yield resolve_model(config.model, progress)
