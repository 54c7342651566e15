"""The quantize stage: from a model to a checked, published folder of int4 weights with its manifest."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.config.steps import QuantizeConfig
from phicli.dataset.formats import has_rows
from phicli.errors import BadInput, Missing, UsageError
from phicli.hardware.devices import check_gpus, choose_device, count_gpus
from phicli.hub.datasets import data_inputs, find_sources
from phicli.hub.models import check_not_quantized, read_config, read_headers, resolve_model, weight_files
from phicli.hub.roots import remember_model
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.quantization import CALIBRATE_ON, CALIBRATION
from phicli.quantization.algorithms import algorithm_of, awq
from phicli.quantization.groups import AWQ_SIZES, choose_group_size
from phicli.quantization.warmup import warm_up
from phicli.resources import announce, estimate_quantize, size_of_folder
from phicli.steps.importing import imports
from phicli.workflow.plan import Plan, StageResult

LIBRARIES = ("torch", "accelerate", "transformers.models.auto.modeling_auto", "transformers.modeling_layers",
             "phicli.quantization.olive_pass")  # that the work begins with
OWN_ROWS = "own_rows"  # what these inputs are called


@subdued()
def quantize(config: QuantizeConfig, progress: Progress = SILENT) -> StageResult:
    """Quantize a model's decoder layers to int4.

    Returns:
        the stage folder (`output`, or `root`/`algorithm`) and its manifest.

    Raises:
        UsageError: options that do not go together. BadInput: model or calibration unusable.
        Missing: no GPU, no package, no space.
    """
    stage, force = plan_quantize(config, progress), config.force
    size, remarks = _group_size(config, stage.sources["model"])
    config = config.but(group_size=size)
    if config.save_plan:
        check_save_plan(config, stage.target)
        force = force or not _is_saved(Path(config.save_plan), stage.result())
    folder, algorithm = stage.sources["model"], algorithm_of(config.algorithm, config.implementation)
    warm = partial(warm_up, config, folder) if own(config) and config.gpus == "1" else bool
    with imports(*LIBRARIES, at_once=force or not stage.target.exists(), beside=warm) as imported:
        done = stage.finished(force, progress)
        if done:
            return StageResult(stage.target, done)
        for remark in remarks:
            progress.warn(remark)
        device = choose_device(config.device)
        if (gpus := count_gpus(config.gpus, config.device)) > 1:
            algorithm = partial(_awq_together, gpus)
        estimate = estimate_quantize(size_of_folder(folder), device, config.samples, config.seq_len, config.refine,
                                     config.generated)
        announce("quantize", estimate, stage.target, progress)
        imported()
    with stage.locked(force, progress) as done:
        if done:
            return StageResult(stage.target, done)
        with stage.publishing() as (fresh, manifest):
            manifest.quality = algorithm(folder, fresh, device, config, progress)
            manifest.quality["source_bytes"] = sum(p.stat().st_size for p in weight_files(folder))
        if config.output is None:
            remember_model(config.root_folder, config.model)
    return StageResult(stage.target, manifest)


def _awq_together(gpus: int, folder: Path, output: Path, device: str, config: QuantizeConfig, progress: Progress
                  ) -> dict[str, Any]:
    """As `awq`, in a process for each GPU."""
    from phicli.hardware.together import on_gpus

    progress.note(f"quantizing on {gpus} GPUs, each with its share of the calibration and of the searches")
    return on_gpus(partial(_awq_as_one_of, gpus, folder, output, device, config), gpus, config.device, progress)


def _awq_as_one_of(gpus: int, folder: Path, output: Path, device: str, config: QuantizeConfig, scratch: Path,
                   number: int, progress: Progress) -> dict[str, Any]:
    """The part of one process."""
    with subdued():
        with imports(*LIBRARIES, at_once=True, beside=partial(warm_up, config, folder)) as imported:
            imported()
        from phicli.hardware.ranks import joined

        with joined(number, gpus, scratch / "meeting", device == "cuda") as ranks:
            return awq(folder, output if ranks.first else scratch / str(number), device, config, progress, ranks)


def plan_quantize(config: QuantizeConfig, progress: Progress = SILENT) -> Plan:
    """What `quantize` would make of the same settings; raises what it raises for options, model and calibration."""
    check_options(config)
    folder = resolve_model(config.model, progress)
    check_not_quantized(read_config(folder), folder)
    calibration = Path(config.calibration) if config.calibration else CALIBRATION
    if not calibration.is_file():
        raise BadInput("no such calibration file", where=calibration, hint=CALIBRATE_ON)
    sources = {"model": folder, "calibration": calibration}
    if config.plan:
        if not Path(config.plan).is_file():
            raise BadInput("no such plan", where=config.plan, hint="phicli quantize --save-plan FILE")
        sources["plan"] = Path(config.plan)
    settings = config.recorded() | {"group_size": _group_size(config, folder)[0]}
    if has_rows(calibration):
        sources |= config.row_sources()
    else:  # how rows are laid out is nothing to this result
        settings = {name: value for name, value in settings.items() if name not in config.row_settings()}
    rows = [name for name in config.own_rows if name != "-"]
    sources |= data_inputs(find_sources(rows, progress=progress), OWN_ROWS)
    return Plan("quantize", Path(config.output or config.root_folder / config.algorithm), sources, settings,
                apart=OWN_ROWS)  # adapters of other data share the result


def _group_size(config: QuantizeConfig, folder: Path) -> tuple[int, list[str]]:
    """As `choose_group_size` of the model in a folder."""
    return choose_group_size(read_headers(folder), config.group_size, config.skip, config.algorithm == "awq", folder)


def own(config: QuantizeConfig) -> bool:
    """Whether phicli's own AWQ does the work, and not one of Olive's passes."""
    return (config.algorithm, config.implementation) == ("awq", "phicli")


def check_options(config: QuantizeConfig) -> None:
    """Raise UsageError or Missing for what cannot work, before anything is loaded."""
    bits, group_size = config.bits, config.group_size
    check_gpus(config.gpus, config.device)
    if config.algorithm == "awq":
        if bits != 4:
            raise UsageError(f"the AWQ format has 4 bits, not {bits}", hint="--algorithm rtn, kquant or gptq has 8")
        if group_size and group_size not in AWQ_SIZES:
            raise UsageError(f"--group-size must be one of {', '.join(map(str, AWQ_SIZES))}, not {group_size}")
    elif bits not in (4, 8):
        raise UsageError(f"--bits must be 4 or 8, not {bits}")
    elif group_size and group_size & (group_size - 1):
        raise UsageError(f"--group-size must be a power of two, not {group_size}")
    if config.implementation == "autoawq":
        if config.algorithm != "awq":
            raise UsageError("--implementation autoawq goes with --algorithm awq")
        if not find_spec("awq"):
            raise Missing("the package autoawq is not installed", hint="pip install 'phicli[autoawq]'")
    if config.skip and config.algorithm != "awq":
        raise UsageError("--skip goes with --algorithm awq; Olive's passes leave no linear in float")
    for option, given in (("--plan", config.plan), ("--refine", config.refine), ("--generated", config.generated),
                          ("--own-rows", config.own_rows), ("--gpus", config.gpus != "1")):
        if given and not own(config):
            raise UsageError(f"{option} goes with phicli's own AWQ")


def check_save_plan(config: QuantizeConfig, target: Path) -> None:
    """Raise UsageError where there is no plan to save, BadInput where it would replace something else."""
    from phicli.quantization.plan import check_plan_place

    if not own(config):
        raise UsageError("--save-plan goes with phicli's own AWQ")
    if config.plan:
        raise UsageError("--save-plan saves what is searched, and with --plan nothing is")
    if config.save_plan:
        check_plan_place(Path(config.save_plan))
        if Path(config.save_plan).resolve().is_relative_to(target.resolve()):
            raise UsageError("lies in the folder of the result, which is made anew as a whole", where="--save-plan")


def _is_saved(file: Path, manifest: stages.Manifest | None) -> bool:
    """Whether the file holds the plan that the result was made with."""
    from phicli.quantization.plan import saved_checksum

    return manifest is not None and file.is_file() and saved_checksum(file) == manifest.quality.get("plan")
