"""The finetune stage: from a base model and rows to a checked, published adapter folder with its manifest."""

import os
import re
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from phicli import stages
from phicli.dataset import load_rows
from phicli.devices import choose_device, open_gpu
from phicli.errors import BadInput, UsageError
from phicli.importing import imports
from phicli.lora.defaults import choose_targets, default_learning_rate
from phicli.models import find_base, resolve_model
from phicli.needs import announce, of_finetune, size_of_folder
from phicli.plans import Plan
from phicli.progress import SILENT, Progress
from phicli.roots import remember_model
from phicli.text import TextCodec, TextTemplate
from phicli.vocabulary import check_vocabulary

LIBRARIES = ("torch", "phicli.lora.passes", "transformers.modeling_layers")  # that the work begins with
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def finetune(
    *, model: str, root: str | Path, base: str | None, data: str, text_template: str, name: str, method: str,
    max_steps: int, batch_size: int, learning_rate: float | None, schedule: str, lora_r: int, lora_alpha: float | None,
    lora_dropout: float, target_modules: list[str], seq_len: int, mask_prompt: bool, eval_split: float,
    checkpoint_steps: int, device: str, seed: int, force: bool = False, progress: Progress = SILENT,
) -> tuple[Path, stages.Manifest]:
    """Train an adapter on a base model.

    Args:
        base: folder or id; None takes the quantized model under `root`. model: the unquantized one (LoftQ needs it).
        learning_rate: peak; None takes `default_learning_rate`. lora_alpha: None takes twice the rank.

    Returns:
        the adapter's folder, `root`/ft/`name`, and its manifest.

    Raises:
        UsageError: options that do not go together. BadInput: name, data, template, base or target modules unusable.
        Missing: no quantized base yet, no GPU, not enough memory or space.
        KeyboardInterrupt: Ctrl-C; the same call goes on from where it stopped.
    """
    plan = plan_finetune(**{k: v for k, v in locals().items() if k not in ("checkpoint_steps", "device", "force")})
    done = plan.finished(force, progress)
    if done:
        return plan.target, done
    template = TextTemplate(text_template)
    rows = load_rows(Path(data), template)
    with imports(*LIBRARIES, at_once=True, beside=partial(_gpu, device)) as imported:
        imported()
    work = _Work(plan, checkpoint_steps, progress)
    work.check(rows, template, device)
    longest = max(len(row.ids) for row in work.rows.train)
    need = of_finetune(size_of_folder(work.folder), work.device, lora_r, batch_size, longest)
    announce("finetune", need, plan.target, progress)
    with plan.turn(force, progress) as done:
        manifest = done or work.train()
        remember_model(Path(root), model)
    return plan.target, manifest


def plan_finetune(
    *, model: str, root: str | Path, base: str | None, data: str, text_template: str, name: str, method: str,
    max_steps: int, batch_size: int, learning_rate: float | None, schedule: str, lora_r: int, lora_alpha: float | None,
    lora_dropout: float, target_modules: list[str], seq_len: int, mask_prompt: bool, eval_split: float, seed: int,
    progress: Progress = SILENT,
) -> Plan:
    """What `finetune` would make of the same arguments; raises what it raises for names, options and base."""
    if not NAME.fullmatch(name):
        raise BadInput("an adapter's name has letters, digits, '.', '_' and '-' only", where=name)
    if not 0 <= eval_split < 1 or not 0 <= lora_dropout < 1:
        raise UsageError("--eval-split and --lora-dropout are shares: at least 0 and below 1")
    folder = resolve_model(base, progress) if base else find_base(Path(root))
    sources = {"base": folder, "data": Path(data)}
    if method == "loftq":
        sources["original"] = resolve_model(model, progress)
    return Plan("finetune", Path(root) / "ft" / name, sources, {
        "method": method, "text_template": text_template, "max_steps": max_steps, "batch_size": batch_size,
        "learning_rate": default_learning_rate(folder) if learning_rate is None else learning_rate,
        "schedule": schedule, "lora_r": lora_r,
        "lora_alpha": 2.0 * lora_r if lora_alpha is None else lora_alpha, "lora_dropout": lora_dropout,
        "target_modules": sorted(target_modules), "seq_len": seq_len, "mask_prompt": mask_prompt,
        "eval_split": eval_split, "seed": seed,
    })


def _gpu(device: str, ended: Event) -> None:
    if device != "cpu":
        open_gpu()


class _Work:
    """What is left to do once names, files and settings are clear: check against the model, train, publish."""

    def __init__(self, plan: Plan, checkpoint_steps: int, progress: Progress):
        self.plan, self.checkpoint_steps, self.progress = plan, checkpoint_steps, progress
        self.folder, self.original = plan.sources["base"], plan.sources.get("original")
        self.target, self.settings = plan.target, plan.settings

    def check(self, rows: list[dict[str, str]], template: Any, device: str) -> None:
        """All that can be found wrong before the model is loaded."""
        from phicli.lora.loading import check_base, linear_names
        from phicli.lora.rows import prepare_rows

        self.device = choose_device(device)
        quantization = check_base(self.folder).get("quantization_config") or {}
        if self.original and quantization.get("quant_method") != "olive":
            raise BadInput("LoftQ needs a base that is a plain rounding of the original (AWQ scales it first)",
                           where=self.folder, hint="phicli quantize --algorithm gptq (or rtn), then --base that folder")
        self.targets = choose_targets(linear_names(self.folder), self.settings["target_modules"])
        codec = TextCodec(self.folder)
        check_vocabulary(codec, template)
        names = ("seq_len", "mask_prompt", "eval_split", "seed")
        self.rows = prepare_rows(rows, template, codec, **{n: self.settings[n] for n in names})
        if self.rows.cut:
            more = f", {self.rows.dropped} of them left out: nothing to learn in the rest" if self.rows.dropped else ""
            self.progress.warn(f"{self.rows.cut} of {len(rows)} rows cut to {self.settings['seq_len']} tokens{more}")

    def train(self) -> stages.Manifest:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums exactly with it
        from phicli.lora.checkpoint import Checkpoint
        from phicli.lora.passes import PASSES, Job
        from phicli.passes import run_pass

        key = {"inputs": self.plan.inputs, "settings": self.settings, "device": self.device,
               "versions": stages.versions()}
        checkpoint = Checkpoint(self.target.with_name(f".{self.target.name}.checkpoint"), key)
        names = ("max_steps", "batch_size", "learning_rate", "schedule", "seed")
        config = {n: self.settings[n] for n in names} | {
            "r": self.settings["lora_r"], "alpha": self.settings["lora_alpha"], "target_modules": self.targets,
            "lora_dropout": self.settings["lora_dropout"], "checkpoint_steps": self.checkpoint_steps,
            "original": str(self.original) if self.original else None, "job": Job(self.rows, checkpoint),
        }
        with self.plan.publishing() as (fresh, manifest):
            result = run_pass(PASSES[self.settings["method"]], config, self.folder, fresh, device=self.device,
                              progress=self.progress)
            for path in sorted((fresh / "adapter").iterdir()):
                path.rename(fresh / path.name)
            (fresh / "adapter").rmdir()
            manifest.quality = {**result.model_attributes["quality"], "rows": len(self.rows.train),
                                "held_out_rows": len(self.rows.held_out), "rows_cut": self.rows.cut}
        checkpoint.remove()
        return manifest
