"""The optimize stage: from a checkpoint and adapters to a checked, published ONNX model folder with its manifest."""

from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.generations import link_unchanged
from phicli.artifacts.names import ADAPTER_SUFFIX, ONNX_FOLDER
from phicli.checkpoints.linears import linear_shapes
from phicli.config.exporting import MergeConfig
from phicli.config.steps import OptimizeConfig
from phicli.errors import UsageError
from phicli.export import openvino, resident
from phicli.export.adapters import check_adapter, convert_adapter, install_adapters
from phicli.export.chat_files import TEMPLATE_SUFFIX, complete_ends, copy_templates, copy_text_files
from phicli.export.graph_file import read_model
from phicli.export.kv_cache import restore_cache, round_cache
from phicli.export.plan import OptimizePlan, plan_optimize
from phicli.export.slots import MODEL
from phicli.export.sources import PREFIX, Source, earlier_sources
from phicli.export.token_cache import ATTENTION, has_scales, put_all_scales, takes_scales
from phicli.hardware.driver import gpu_count
from phicli.kernels.build import missing
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.resources import announce, estimate_optimize, size_of_folder
from phicli.steps.importing import imports
from phicli.workflow.plan import StageResult

LIBRARIES = ("torch", "phicli.export.olive_pass", "onnxruntime_genai.models.builder")  # that building begins with
# Of MatMulNBits: the least precision that its products may be computed in. On the built-in AWQ model, int8 gives a KL
# of 2.6e-3 to torch and fp32 one of 1e-11; on a CPU, int8 decodes a model of 0.75 GB fourteen times as fast.
ACCURACY_LEVELS = {"int8": 4, "fp32": 1}
# Of the builder, for a head that `rounded_vocabulary` leaves to it. Nothing of the embedding is.
HEADS: dict[str, dict[str, Any]] = {
    "int4": {"extra_options": {"shared_embeddings": "false"}},
    "int8": {"extra_options": {"matmul_mixed_precision": "last_matmul:int8", "shared_embeddings": "false"}},
    "float": {"int4_nodes_to_exclude": ["/lm_head/MatMul", "/model/embed_tokens/Gather"]},
}


@subdued()
def optimize(config: OptimizeConfig, progress: Progress = SILENT) -> StageResult:
    """Build the ONNX model of a checkpoint, with slots for adapters, and write the adapters' files beside it.

    Where the model is up to date, only the files of new or changed adapters are written. Adapters that it has stay.

    Returns:
        the model's folder, `output` or `root`/onnx-ao, and its manifest.

    Raises:
        UsageError: options that do not go together. BadInput: base or adapters unusable; also as `merge`.
        Missing: no quantized base yet, an NPU, no space.
    """
    if config.merge:
        config = _merged(config, progress)
    plan, force = plan_optimize(config, progress), config.force
    model, sources = plan.sources["base"], plan.adapters
    with imports(*LIBRARIES, at_once=force or not plan.target.exists()) as imported:
        done = plan.finished(force, progress)
        if done:
            return StageResult(plan.target, done)
        shapes = linear_shapes(model)
        for source in sources.values():
            source.check(shapes, plan.inputs["base"], progress)
        if force or not plan.model_verdict().current:
            imported()
    with plan.locked(force, progress) as done:
        if done:
            return StageResult(plan.target, done)
        if not force and plan.model_verdict().current:
            return StageResult(plan.target, _add_adapters(plan, shapes, progress))
        for source in earlier_sources(plan.target, sources).values():
            source.check(shapes, plan.inputs["base"], progress)
            plan.add(source)
        return StageResult(plan.target, _build(plan, progress))


def _merged(config: OptimizeConfig, progress: Progress) -> OptimizeConfig:
    """The settings by which a model is built that has the adapter in its weights.

    A model that `merge` has made in int4 is taken as it is, whatever it was calibrated with.
    """
    from phicli.steps.merge import merge, plan_merge

    if config.adapters:
        raise UsageError("--merge makes a model without slots, and so without --adapter")
    given = MergeConfig(model=config.model, root=config.root, adapter=config.merge, base=config.base, precision="int4",
                        force=config.force)
    plan = plan_merge(given, progress)
    have = stages.read_manifest(plan.target)
    if config.force or have is None or any(have.inputs.get(name) != plan.inputs[name] for name in ("base", "adapter")):
        merge(given, progress)
    name = plan.target.name.removesuffix("-int4")
    output = config.output or str(config.root_folder / f"{ONNX_FOLDER}-{name}")
    return config.but(base=str(plan.target), output=output)


def _build(plan: OptimizePlan, progress: Progress) -> stages.Manifest:
    model, settings, sources = plan.sources["base"], plan.settings, list(plan.adapters.values())
    estimate = estimate_optimize(size_of_folder(model), *(settings[name] for name in ("device", "embeddings", "head")))
    announce("optimize", estimate, plan.target, progress)
    with plan.publishing() as (fresh, manifest):
        _run_builder(model, fresh, settings, progress)
        (fresh / PREFIX).mkdir()
        copy_text_files(model, fresh, sources, progress)
        if settings["adapter_layout"] in resident.GRAPHS:
            (fresh / MODEL).rename(fresh / resident.BASE)
            manifest.quality["adapters"] = _install(fresh, sources, settings, progress)
        else:
            manifest.quality["adapters"] = _add_files(fresh, sources, settings, progress)
        if settings["kv_cache"] == "int8":
            _round_cache(fresh, sources, settings, progress)
    return manifest


def _run_builder(model: Path, output: Path, settings: dict[str, Any], progress: Progress) -> None:
    from phicli.export.olive_pass import SlottedModelBuilder
    from phicli.workflow.olive import run_pass

    config: dict[str, Any] = {"precision": "int4", "enable_cuda_graph": settings["cuda_graph"]}
    config["slots"] = "none" if settings["adapter_layout"] in resident.GRAPHS else settings["adapter_layout"]
    if settings["activations"] in ACCURACY_LEVELS:
        config["int4_accuracy_level"] = ACCURACY_LEVELS[settings["activations"]]
    config |= HEADS[settings["head"]] | {name: settings[name] for name in ("embeddings", "head")}
    run_pass(SlottedModelBuilder, config, model, output, device=settings["device"], progress=progress)
    if settings["device"] == "openvino":  # the builder has made the graph of a CPU
        openvino.name_provider(output, settings["hardware"], settings["activations"])


def _round_cache(folder: Path, sources: list[Source], settings: dict[str, Any], progress: Progress) -> None:
    """Put the cache of the graphs in `folder` into int8: with a scale for each token where our own attention can run.

    Else with one for each channel, by the keys and values that the calibration text gives. sources: the adapters that
    were not measured before.
    """
    from phicli.inference.cache_ranges import calibration_texts, measure_ranges
    from phicli.text import TextCodec

    graphs = [path for name in (resident.BASE, MODEL) if (path := folder / name).is_file()
              and not has_scales(read_model(path).graph)]
    if not graphs:
        return
    known = {name: found for path in graphs for name, found in restore_cache(path).items()}
    target = settings["device"]
    if target in ATTENTION and not missing(target) and all(takes_scales(path, folder, target) for path in graphs):
        put_all_scales(graphs, folder, target)
        return
    texts = calibration_texts(TextCodec(folder))
    adapters = [*([] if known else [None]), *(_file(folder, source.name) for source in sources)]
    device = "cuda" if settings["device"] == "cuda" and gpu_count() else "cpu"
    with progress.task("key/value cache", len(texts) * len(adapters), "sequences") as task:
        largest = measure_ranges(folder, texts, adapters, device, known, task)
    for path in graphs:
        round_cache(path, largest)


def _add_adapters(plan: OptimizePlan, shapes: dict[str, tuple[int, int]], progress: Progress) -> stages.Manifest:
    """Publish a folder with new or changed adapters, and what has not changed of the one that is there."""
    folder, have = plan.target, stages.read_manifest(plan.target)
    assert have is not None  # it is up to date
    late = plan.late_adapters()
    progress.note(f"the model in {folder} is up to date; adding {', '.join(late)}")
    in_graph = plan.settings["adapter_layout"] in resident.GRAPHS
    earlier = earlier_sources(folder, plan.adapters)
    if in_graph:  # which is written anew, with all of them; their numbers stay
        for source in earlier.values():
            source.check(shapes, plan.inputs["base"], progress)
            plan.add(source)
    order = {name: plan.adapters[name] for name in have.quality["adapters"] if name in plan.adapters} | plan.adapters
    fresh_ones = [source for name, source in order.items() if in_graph or name in late]
    with plan.publishing() as (fresh, manifest):
        replaced = {file.with_suffix(suffix).as_posix() for source in fresh_ones
                    for file in [_file(Path(), source.name)] for suffix in (ADAPTER_SUFFIX, TEMPLATE_SUFFIX)}
        link_unchanged(folder, fresh, lambda name: name != stages.MANIFEST and name not in replaced and not (
            in_graph and (name == MODEL or name.startswith(resident.DATA))))
        (fresh / PREFIX).mkdir(exist_ok=True)
        copy_templates(fresh, fresh_ones)
        complete_ends(fresh, progress)
        entries = {name: entry for name, entry in have.quality["adapters"].items() if _file(fresh, name).is_file()}
        entries |= (_install if in_graph else _add_files)(fresh, fresh_ones, plan.settings, progress)
        if plan.settings["kv_cache"] == "int8":
            late_ones = [source for source in fresh_ones if source.name in late]
            _round_cache(fresh, late_ones, plan.settings, progress)
        manifest.inputs = {k: v for k, v in (have.inputs | plan.inputs).items()
                           if not k.startswith(PREFIX) or k.removeprefix(PREFIX) in entries}
        manifest.quality = {**have.quality, "adapters": entries}
    return manifest


def _install(folder: Path, sources: list[Source], settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Write the graph that holds all adapters, and their files; returns what the manifest says about them."""
    with progress.task("adapters", len(sources), "adapters") as task:
        install_adapters(folder, {source.name: source.loras for source in sources},
                         settings["adapter_layout"], settings["adapter_weights"])
        if settings["device"] == "openvino":
            openvino.choose_adapters_outside(folder / MODEL)
        for source in sources:
            check_adapter(folder, _file(folder, source.name))
        task.advance(len(sources))
    return {source.name: _entry(source, _file(folder, source.name)) for source in sources}


def _entry(source: Source, file: Path) -> dict[str, Any]:
    return {"source": str(source.folder.absolute()), "bytes": file.stat().st_size, "rank": source.rank}


def _add_files(folder: Path, sources: list[Source], settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Write each adapter's file and check it; returns what the manifest says about them."""
    entries: dict[str, Any] = {}
    if not sources:
        return entries
    with progress.task("adapters", len(sources), "adapters") as task:
        for source in sources:
            file = _file(folder, source.name)
            convert_adapter(folder, source.loras, file, source.folder)
            check_adapter(folder, file)
            entries[source.name] = _entry(source, file)
            task.advance(1, name=source.name, rank=entries[source.name]["rank"])
    return entries


def _file(folder: Path, name: str) -> Path:
    return folder / PREFIX / (name + ADAPTER_SUFFIX)
