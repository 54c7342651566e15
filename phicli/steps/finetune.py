"""The finetune stage: from a base model and rows to a checked, published adapter folder with its manifest."""

import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phicli.artifacts.names import ADAPTER_CONFIG, FINETUNED
from phicli.checkpoints.adapter_settings import read_peft_config
from phicli.config.steps import DEFAULT_RANK, FinetuneConfig
from phicli.dataset.sources import Source
from phicli.dataset.table import Table
from phicli.errors import BadInput, UsageError
from phicli.hardware.devices import check_gpus, count_gpus, shards
from phicli.hardware.driver import expected_device, open_gpu
from phicli.hub.datasets import data_inputs, find_sources, held_out_sources, stdin_as_file
from phicli.hub.models import find_base, resolve_model
from phicli.hub.roots import remember_model
from phicli.libraries import environment, subdued
from phicli.progress import SILENT, Progress
from phicli.resources import announce, estimate_finetune, size_of_folder
from phicli.steps.importing import imports
from phicli.training.defaults import ALL_LINEAR, check_name, check_rank, default_learning_rate
from phicli.training.recipe import DEFAULT_STEPS
from phicli.training.reporting import check_reporter
from phicli.workflow.plan import Plan, StageResult

if TYPE_CHECKING:
    from phicli.training.checkpoint import Checkpoint

PEFT_DEFAULT = 8  # rank and alpha of an adapter whose settings name none
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
LIBRARIES = ("torch", "phicli.training.passes", "transformers.modeling_layers")  # that the work begins with


@subdued()
def finetune(config: FinetuneConfig, progress: Progress = SILENT) -> StageResult:
    """Train an adapter on a base model.

    Returns:
        the adapter's folder, `root`/ft/`name`, and its manifest.

    Raises:
        UsageError: options that do not go together. BadInput: name, data, template, base or target modules unusable,
            or an adapter whose held-out loss did not fall, which is then kept beside.
        Missing: no quantized base yet, no GPU, not enough memory or space, no package for `report_to`.
        KeyboardInterrupt: Ctrl-C; the same call goes on from where it stopped.
    """
    with stdin_as_file(config.data) as data, environment(**_allocator(config)):
        return _finetune(config.but(data=data), progress)


def _allocator(config: FinetuneConfig) -> dict[str, str]:
    """How torch is to take a GPU's memory, which it reads when it takes some for the first time: in segments that grow.
    Between those of fixed sizes 1.8 of 5.2 GB are lost once a base of 3.8 B has been laid out as its kernels want it.
    """
    own = any(name in os.environ for name in ALLOCATOR)
    return {} if own or config.gpus != "1" or sys.platform != "linux" else {ALLOCATOR[0]: "expandable_segments:True"}


def _finetune(config: FinetuneConfig, progress: Progress) -> StageResult:
    check_gpus(config.gpus, config.device)  # also where there is nothing to do
    if config.shard:
        check_shard(config)
    plan = plan_finetune(config, progress)
    done = plan.finished(config.force, progress)
    if done:
        return StageResult(plan.target, done)
    check_reporter(config.report_to)
    gpus = count_gpus(config.gpus, config.device)
    with imports(*LIBRARIES, at_once=True, beside=partial(_gpu, "cpu" if gpus > 1 else config.device)) as imported:
        sources, eval_sources = _data(config, SILENT)  # the plan has told what there is to tell
        table = Table(sources, config, progress)
        eval_table = Table(eval_sources, config, progress) if eval_sources else None
        imported()
    from phicli.steps.finetuning import Work

    work = Work(plan, config, progress)
    work.check(table, eval_table)
    size = size_of_folder(work.folder)
    if shard := gpus > 1 and shards(size.weight_bytes, gpus, config.shard):
        check_shard(config)
    estimate = estimate_finetune(size, work.device, plan.settings["lora_r"], -(-config.batch_size // gpus),
                                 work.longest, gpus if shard else 1)
    announce("finetune", estimate, plan.target, progress)
    with plan.locked(config.force, progress) as done:
        fit = partial(_fit_together, config, gpus, shard, progress) if gpus > 1 else None
        manifest = done or work.train(fit)
        remember_model(config.root_folder, config.model)
    return StageResult(plan.target, manifest)


def check_shard(config: FinetuneConfig) -> None:
    """Raise UsageError where a base cannot be trained on in parts."""
    if config.gpus == "1":
        raise UsageError("goes with several --gpus", where="--shard")
    if config.method != "lora":
        raise UsageError(f"an adapter of --method {config.method} needs the whole base", where="--shard",
                         hint="--method lora")


def _fit_together(config: FinetuneConfig, gpus: int, shard: bool, progress: Progress, output: Path,
                  checkpoint: "Checkpoint") -> dict[str, Any]:
    """As `Work.fit`, in as many processes as there are GPUs."""
    from phicli.hardware.together import on_gpus

    progress.note(f"training on {gpus} GPUs, each with {'a part of the' if shard else 'the whole'} model and its "
                  "share of a step's rows")
    return on_gpus(partial(_fit_as_one_of, config, gpus, shard, output, checkpoint), gpus, config.device, progress)


def _fit_as_one_of(config: FinetuneConfig, gpus: int, shard: bool, output: Path, checkpoint: "Checkpoint",
                   scratch: Path, number: int, progress: Progress) -> dict[str, Any]:
    """The part of one process. What has been told of the data already is not told again."""
    with subdued():
        from phicli.hardware.ranks import joined
        from phicli.steps.finetuning import Work

        sources, eval_sources = _data(config, SILENT)
        work = Work(plan_finetune(config), config, SILENT)
        work.check(Table(sources, config), Table(eval_sources, config) if eval_sources else None)
        work.progress = progress
        with joined(number, gpus, scratch / "meeting", work.device == "cuda", shard) as ranks:
            return work.fit(output if ranks.first else scratch / str(number), checkpoint, ranks)


def plan_finetune(config: FinetuneConfig, progress: Progress = SILENT) -> Plan:
    """What `finetune` would make of the same settings; raises what it raises for names, options, base and adapter."""
    check_name(config.name)
    if config.gpu_memory is not None and expected_device(config.device) == "cpu":
        progress.warn("--gpu-memory does nothing here, as training is computed on the CPU; a smaller --batch-size or "
                      "--seq-len takes less of its memory")
    root = config.root_folder
    folder = resolve_model(config.base, progress) if config.base else find_base(root)
    data, eval_data = _data(config, progress)
    sources = {"base": folder, **data_inputs(data), **data_inputs(eval_data, "eval_data")} | config.row_sources()
    if config.method == "loftq":
        sources["original"] = resolve_model(config.model, progress)
    rate, rank = config.learning_rate, config.lora_r or DEFAULT_RANK
    settings = config.recorded() | {
        "learning_rate": default_learning_rate(folder) if rate is None else rate,
        "max_steps": DEFAULT_STEPS if config.max_steps is None and config.epochs is None else config.max_steps,
        "lora_r": rank, "lora_alpha": 2.0 * rank if config.lora_alpha is None else config.lora_alpha,
        "target_modules": sorted(config.target_modules),
    }
    if any(source.weight != 1 for source in data):
        settings["data_weights"] = [source.weight for source in data]
    if config.from_adapter:
        sources["from_adapter"] = find_adapter(config.from_adapter, root / FINETUNED)
        settings |= _continued(config, sources["from_adapter"])
    else:
        check_rank(rank, folder, progress)
    return Plan("finetune", root / FINETUNED / config.name, sources, settings)


def _data(config: FinetuneConfig, progress: Progress) -> tuple[list[Source], list[Source]]:
    """Files to train on, and files of held-out rows: those named, or else the split validation beside the split train.

    Raises:
        As `find_sources`.
    """
    data = find_sources(config.data, progress=progress)
    if config.eval_data:
        return data, held_out_sources(config.eval_data, progress)
    try:
        named = [Path(name) for name in config.data if Path(name).is_dir()]
        return data, find_sources([str(path) for path in named], "validation") if named else []
    except BadInput:  # it has no such split
        return data, []


def find_adapter(reference: str, trained: Path) -> Path:
    """The folder of an adapter that is called by its name under `trained`, or by its folder.

    Raises:
        BadInput: there is none.
    """
    named, is_name = trained / reference, Path(reference).name == reference
    folder = named if is_name and named.is_dir() else Path(reference)
    if folder.is_dir():
        return folder
    if not is_name:
        raise BadInput("no such adapter folder", where=reference, hint="a folder that is there, or a name in ROOT/ft")
    known = sorted(path.parent.name for path in trained.glob(f"[!.]*/{ADAPTER_CONFIG}"))
    raise BadInput(f"no adapter '{reference}'; there are: {', '.join(known) or 'none'}", where=trained,
                   hint=f"phicli finetune --name {shlex.quote(reference)}")


def _continued(config: FinetuneConfig, folder: Path) -> dict[str, Any]:
    """The settings that an adapter brings along.

    Raises:
        BadInput: no plain LoRA. UsageError: settings that contradict it.
    """
    if folder == config.root_folder / FINETUNED / config.name:
        raise UsageError("the result would replace the adapter that it continues from", where="--name",
                         hint=f"--name {config.name}-2")
    if config.method != "lora":
        raise UsageError(f"--from-adapter goes on with LoRA, not with {config.method}", where="--method")
    known = read_peft_config(folder)
    targets = known.get("target_modules")
    own: dict[str, Any] = {
        "lora_r": known.get("r") or PEFT_DEFAULT, "lora_alpha": known.get("lora_alpha") or PEFT_DEFAULT,
        "target_modules": sorted(targets) if isinstance(targets, list) else [str(targets)],
    }
    given = {"lora_r": config.lora_r, "lora_alpha": config.lora_alpha,
             "target_modules": None if config.target_modules == (ALL_LINEAR,) else sorted(config.target_modules)}
    for name, value in given.items():
        if value is not None and value != own[name]:
            shown = own[name] if name != "target_modules" else ", ".join(own[name])
            raise UsageError(f"the adapter to continue from has {shown}: leave the option out",
                             where=f"--{name.replace('_', '-')}")
    return own


def _gpu(device: str, reached: Callable[[str], bool]) -> None:
    if device != "cpu":
        open_gpu()
