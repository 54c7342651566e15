"""The algorithms of `phicli quantize`: phicli's own AWQ, AutoAWQ's, and those that Olive has passes for.

To add one: its name in `phicli.config.steps.QUANTIZE_ALGORITHMS`, and an entry here.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phicli.config.steps import QuantizeConfig
from phicli.errors import Missing
from phicli.progress import Progress

if TYPE_CHECKING:
    from phicli.hardware.ranks import Ranks

# folder of the model, folder to write, device -> what was measured, for the manifest
Run = Callable[[Path, Path, str, QuantizeConfig, Progress], dict[str, Any]]


def algorithm_of(name: str, implementation: str) -> Run:
    """What does the work under these settings."""
    return _autoawq if (name, implementation) == ("awq", "autoawq") else ALGORITHMS[name]


def awq(folder: Path, output: Path, device: str, config: QuantizeConfig, progress: Progress,
        ranks: "Ranks | None" = None) -> dict[str, Any]:
    """phicli's own AWQ. ranks: processes that do it together; the first of them writes into `output`."""
    from phicli.quantization.olive_pass import PASS_SETTINGS, PhicliAwq
    from phicli.workflow.olive import run_pass

    given = {name: getattr(config, name) for name in PASS_SETTINGS}
    given |= {"modules_to_not_convert": list(config.skip), "ranks": ranks}
    return run_pass(PhicliAwq, given, folder, output, device=device, progress=progress).model_attributes["quality"]


def _autoawq(folder: Path, output: Path, device: str, config: QuantizeConfig, progress: Progress) -> dict[str, Any]:
    from phicli.workflow.olive import run_pass
    from phicli.workflow.wording import worded

    if device != "cuda":
        raise Missing("Olive runs AutoAWQ on CUDA only", hint="--implementation phicli works on any machine")
    tokens, quality = _calibrated(folder, config, progress)
    data = {"name": "calibration", "load_dataset_config": {"params": {"data_name": tokens.tolist()}}}
    given = {"q_group_size": config.group_size, "data_config": data, "modules_to_not_convert": list(config.skip)}
    with worded("AutoAWQ cannot quantize this model", folder):
        run_pass("AutoAWQQuantizer", given, folder, output, device=device)
    return quality


def _olive(
    passes: tuple[str, ...], calibrated: bool, folder: Path, output: Path, device: str, config: QuantizeConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Olive's passes in a row, the last of which quantizes. calibrated: it needs tokens, and gets those of AWQ."""
    from safetensors.torch import save_file

    from phicli.quantization.olive_pass import tokens_data_config
    from phicli.workflow.olive import run_pass
    from phicli.workflow.wording import worded

    given: dict[str, Any] = {"bits": config.bits, "group_size": config.group_size, "sym": config.symmetric}
    quality: dict[str, Any] = {}
    *before, last = passes
    with tempfile.TemporaryDirectory(prefix="phicli-") as scratch:
        if calibrated:
            tokens, quality = _calibrated(folder, config, progress)
            save_file({"tokens": tokens}, f"{scratch}/tokens.safetensors")
            given["data_config"] = tokens_data_config(Path(scratch) / "tokens.safetensors")
        with progress.task(f"quantize with Olive's {last}", total=len(passes), unit="passes") as task:
            for i, name in enumerate(before):
                with worded(f"Olive's {name} cannot take this model", folder):
                    run_pass(name, {"seed": config.seed}, folder, Path(scratch) / str(i), device=device)
                folder = Path(scratch) / str(i)
                task.advance()
            with worded(f"Olive's {last} cannot quantize this model", folder):
                run_pass(last, given, folder, output, device=device)
            task.advance()
    return quality


def _calibrated(folder: Path, config: QuantizeConfig, progress: Progress) -> tuple[Any, dict[str, Any]]:
    """Calibration tokens, int64 (rows, length), and what the manifest tells of them."""
    from phicli.quantization.calibration import calibration_tokens, tokens_digest

    tokens = calibration_tokens(folder, config, progress)
    return tokens, {"calibration_tokens": tokens_digest(tokens), "calibration_sequences": len(tokens)}


ALGORITHMS: dict[str, Run] = {
    "awq": awq,
    "gptq": partial(_olive, ("Gptq",), True),
    "rtn": partial(_olive, ("Rtn",), False),
    "kquant": partial(_olive, ("KQuant",), False),
    "quarot": partial(_olive, ("QuaRot", "Gptq"), True),
}
