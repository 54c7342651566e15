"""The quantize stage: from a model to a checked, published folder of int4 weights with its manifest."""

import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from phicli import stages
from phicli.awq.warming import warm_up
from phicli.devices import choose_device
from phicli.errors import BadInput, Missing, UsageError
from phicli.fitting import check_groups
from phicli.importing import imports
from phicli.models import read_config, read_headers, resolve_model, weight_files
from phicli.needs import announce, of_quantize, size_of_folder
from phicli.plans import Plan
from phicli.progress import SILENT, Progress
from phicli.roots import remember_model

OLIVE_PASSES = {"gptq": ("Gptq",), "rtn": ("Rtn",), "kquant": ("KQuant",), "quarot": ("QuaRot", "Gptq")}
CALIBRATED = {"gptq", "quarot"}
CALIBRATION = Path(__file__).parent.parent / "calibration.txt"  # where the user gives none
AWQ_GROUPS = (32, 64, 128)  # what genai's builder and AutoAWQ's kernels read
LIBRARIES = ("torch", "accelerate", "transformers.models.auto.modeling_auto", "transformers.modeling_layers",
             "phicli.awq.olive_pass")  # that the work begins with


def quantize(
    *, model: str, root: str | Path, output: Path | None, device: str, algorithm: str, implementation: str, bits: int,
    group_size: int, symmetric: bool, calibration: str | None, text_template: str, samples: int, seq_len: int,
    rounding: str, skip: list[str], seed: int, distill: int = 0, plan: str | None = None, save_plan: str | None = None,
    force: bool = False, progress: Progress = SILENT,
) -> tuple[Path, stages.Manifest]:
    """Quantize a model's decoder layers to int4.

    Args:
        distill: steps of training afterwards, see `phicli.awq.distill`.
        plan: file of AWQ scales and ranges to take instead of searching. save_plan: file to put those found into.

    Returns:
        the stage folder (`output`, or `root`/`algorithm`) and its manifest.

    Raises:
        UsageError: options that do not go together. BadInput: model or calibration unusable.
        Missing: no GPU, no package, no space.
    """
    stage = plan_quantize(**{k: v for k, v in locals().items() if k not in ("device", "force", "save_plan")})
    if save_plan:
        check_save_plan(save_plan, plan, algorithm, implementation)
        force = force or not _is_saved(Path(save_plan), stage.result())
    own = (algorithm, implementation) == ("awq", "phicli")
    folder = stage.sources["model"]
    warm = partial(warm_up, device, folder, read_config(folder), stage.settings)
    with imports(*LIBRARIES, at_once=force or not stage.target.exists(), beside=warm if own else None) as imported:
        done = stage.finished(force, progress)
        if done:
            return stage.target, done
        left = check_groups(read_headers(folder), group_size, skip, algorithm in OLIVE_PASSES, folder)
        if left:
            progress.warn(left)
        device = choose_device(device)
        need = of_quantize(size_of_folder(folder), device, samples, seq_len, distill)
        announce("quantize", need, stage.target, progress)
        imported()
    work = _phicli_awq if own else _olive
    given = {"calibration": calibration, "plan": plan, "save_plan": save_plan}
    with stage.turn(force, progress) as done:
        if done:
            return stage.target, done
        with stage.publishing() as (fresh, manifest):
            manifest.quality = work(folder, fresh, device, {**stage.settings, **given}, progress)
            manifest.quality["source_bytes"] = sum(p.stat().st_size for p in weight_files(folder))
        if output is None:
            remember_model(Path(root), model)
    return stage.target, manifest


def plan_quantize(
    *, model: str, root: str | Path, output: Path | None, algorithm: str, implementation: str, bits: int,
    group_size: int, symmetric: bool, calibration: str | None, text_template: str, samples: int, seq_len: int,
    rounding: str, skip: list[str], seed: int, distill: int = 0, plan: str | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """What `quantize` would make of the same arguments; raises what it raises for options, model and calibration."""
    check_options(algorithm, implementation, bits, group_size)
    for option, given in (("--plan", plan), ("--distill", distill)):
        if given and (algorithm, implementation) != ("awq", "phicli"):
            raise UsageError(f"{option} goes with phicli's own AWQ")
    folder = resolve_model(model, progress)
    if "quantization_config" in read_config(folder):
        raise BadInput("already quantized", where=folder, hint="start from the original model")
    if calibration and not Path(calibration).is_file():
        raise BadInput("no such calibration file", where=calibration)
    sources = {"model": folder, "calibration": Path(calibration) if calibration else CALIBRATION}
    if plan:
        if not Path(plan).is_file():
            raise BadInput("no such plan", where=plan, hint="phicli quantize --save-plan FILE makes one")
        sources["plan"] = Path(plan)
    return Plan("quantize", Path(output or Path(root) / algorithm), sources, {
        "algorithm": algorithm, "implementation": implementation, "bits": bits, "group_size": group_size,
        "symmetric": symmetric, "text_template": text_template, "samples": samples, "seq_len": seq_len,
        "rounding": rounding, "skip": skip, "seed": seed, "distill": distill,
    })


def check_options(algorithm: str, implementation: str, bits: int, group_size: int) -> None:
    """Raise UsageError or Missing for what cannot work, before anything is loaded."""
    if algorithm == "awq":
        if bits != 4:
            raise UsageError(f"the AWQ format has 4 bits, not {bits}", hint="--algorithm rtn, kquant or gptq has 8")
        if group_size not in AWQ_GROUPS:
            raise UsageError(f"--group-size must be one of {', '.join(map(str, AWQ_GROUPS))}, not {group_size}")
    elif bits not in (4, 8):
        raise UsageError(f"--bits must be 4 or 8, not {bits}")
    elif group_size & (group_size - 1):
        raise UsageError(f"--group-size must be a power of two, not {group_size}")
    if implementation == "autoawq":
        if algorithm != "awq":
            raise UsageError("--implementation autoawq goes with --algorithm awq")
        if not find_spec("awq"):
            raise Missing("the package autoawq is not installed", hint="pip install 'phicli[autoawq]'")


def check_save_plan(file: str, plan: str | None, algorithm: str, implementation: str) -> None:
    """Raise UsageError where there is no plan to save, BadInput where it would replace something else."""
    from phicli.awq.plan import check_plan_place

    if (algorithm, implementation) != ("awq", "phicli"):
        raise UsageError("--save-plan goes with phicli's own AWQ")
    if plan:
        raise UsageError("--save-plan saves what is searched, and with --plan nothing is")
    check_plan_place(Path(file))


def _is_saved(file: Path, manifest: stages.Manifest | None) -> bool:
    """Whether the file holds the plan that the result was made with."""
    from phicli.awq.plan import saved_checksum

    return manifest is not None and file.is_file() and saved_checksum(file) == manifest.quality.get("plan")


def _phicli_awq(folder: Path, output: Path, device: str, settings: dict, progress: Progress):
    from phicli.awq.olive_pass import PhicliAwq
    from phicli.passes import run_pass

    names = ("group_size", "symmetric", "rounding", "text_template", "samples", "seq_len", "seed", "calibration",
             "plan", "save_plan", "distill")
    config = {name: settings[name] for name in names} | {"modules_to_not_convert": settings["skip"]}
    return run_pass(PhicliAwq, config, folder, output, device=device, progress=progress).model_attributes["quality"]


def _olive(folder: Path, output: Path, device: str, settings: dict, progress: Progress):
    """One of Olive's passes, or two in a row, on the same calibration tokens."""
    from safetensors.torch import save_file

    from phicli.awq.calibration import calibration_tokens, tokens_digest
    from phicli.awq.olive_pass import tokens_data_config
    from phicli.passes import run_pass
    from phicli.text import TextCodec, TextTemplate
    from phicli.wording import worded

    algorithm, calibration = settings["algorithm"], settings["calibration"]
    if algorithm == "awq" and device != "cuda":
        raise Missing("Olive runs AutoAWQ on CUDA only", hint="--implementation phicli works on any machine")
    with tempfile.TemporaryDirectory(prefix="phicli-") as scratch:
        common: dict[str, Any] = {}
        quality: dict[str, Any] = {}
        if algorithm == "awq" or algorithm in CALIBRATED:
            tokens = calibration_tokens(
                TextCodec(folder), Path(calibration) if calibration else None, TextTemplate(settings["text_template"]),
                settings["samples"], settings["seq_len"], settings["seed"], progress,
            )
            quality |= {"calibration_tokens": tokens_digest(tokens), "calibration_sequences": len(tokens)}
        if algorithm == "awq":
            data = {"name": "calibration", "load_dataset_config": {"params": {"data_name": tokens.tolist()}}}
            config = {"q_group_size": settings["group_size"], "data_config": data,
                      "modules_to_not_convert": settings["skip"]}
            with worded("AutoAWQ cannot quantize this model", folder):
                run_pass("AutoAWQQuantizer", config, folder, output, device=device)
            return quality
        if algorithm in CALIBRATED:
            save_file({"tokens": tokens}, f"{scratch}/tokens.safetensors")
            common["data_config"] = tokens_data_config(Path(scratch) / "tokens.safetensors")
        grid = {"bits": settings["bits"], "group_size": settings["group_size"], "sym": settings["symmetric"]}
        *before, last = OLIVE_PASSES[algorithm]
        with progress.task(f"quantize with Olive's {last}", total=len(before) + 1, unit="passes") as task:
            for i, name in enumerate(before):
                with worded(f"Olive's {name} cannot take this model", folder):
                    run_pass(name, {"seed": settings["seed"]}, folder, Path(scratch) / str(i), device=device)
                folder = Path(scratch) / str(i)
                task.advance()
            with worded(f"Olive's {last} cannot quantize this model", folder):
                run_pass(last, {**grid, **common}, folder, output, device=device)
            task.advance()
    return quality
