"""The finetune stage: from a base model and rows to a checked, published adapter folder with its manifest."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from phicli.artifacts import stages
from phicli.artifacts.names import FINETUNED
from phicli.config.steps import FinetuneConfig
from phicli.dataset.encoding import RowEncoder, check_layout
from phicli.dataset.table import Table
from phicli.errors import BadInput
from phicli.hardware.devices import choose_device
from phicli.hardware.driver import open_gpu
from phicli.hub.models import find_base, resolve_model
from phicli.hub.roots import remember_model
from phicli.hub.vocabulary import check_vocabulary
from phicli.libraries import environment, subdued
from phicli.progress import SILENT, Progress
from phicli.resources import announce, estimate_finetune, size_of_folder
from phicli.steps.importing import imports
from phicli.text.layout import TEMPLATE_FILE
from phicli.training.defaults import check_name, choose_targets, default_learning_rate
from phicli.workflow.plan import Plan, StageResult

LIBRARIES = ("torch", "phicli.training.passes", "transformers.modeling_layers")  # that the work begins with


@subdued()
def finetune(config: FinetuneConfig, progress: Progress = SILENT) -> StageResult:
    """Train an adapter on a base model.

    Returns:
        the adapter's folder, `root`/ft/`name`, and its manifest.

    Raises:
        UsageError: options that do not go together. BadInput: name, data, template, base or target modules unusable.
        Missing: no quantized base yet, no GPU, not enough memory or space.
        KeyboardInterrupt: Ctrl-C; the same call goes on from where it stopped.
    """
    plan = plan_finetune(config, progress)
    done = plan.finished(config.force, progress)
    if done:
        return StageResult(plan.target, done)
    with imports(*LIBRARIES, at_once=True, beside=partial(_gpu, config.device)) as imported:
        table = Table([config.data], config, progress)
        imported()
    work = _Work(plan, config, progress)
    work.check(table)
    longest = max(len(row.ids) for row in work.rows.train)
    estimate = estimate_finetune(size_of_folder(work.folder), work.device, config.lora_r, config.batch_size, longest)
    announce("finetune", estimate, plan.target, progress)
    with plan.locked(config.force, progress) as done:
        manifest = done or work.train()
        remember_model(config.root_folder, config.model)
    return StageResult(plan.target, manifest)


def plan_finetune(config: FinetuneConfig, progress: Progress = SILENT) -> Plan:
    """What `finetune` would make of the same settings; raises what it raises for names, options and base."""
    check_name(config.name)
    root = config.root_folder
    folder = resolve_model(config.base, progress) if config.base else find_base(root)
    sources = {"base": folder, "data": Path(config.data)} | config.row_sources()
    if config.method == "loftq":
        sources["original"] = resolve_model(config.model, progress)
    rate, alpha = config.learning_rate, config.lora_alpha
    return Plan("finetune", root / FINETUNED / config.name, sources, config.recorded() | {
        "learning_rate": default_learning_rate(folder) if rate is None else rate,
        "lora_alpha": 2.0 * config.lora_r if alpha is None else alpha,
        "target_modules": sorted(config.target_modules),
    })


def _gpu(device: str, reached: Callable[[str], bool]) -> None:
    if device != "cpu":
        open_gpu()


class _Work:
    """What is left to do once names, files and settings are clear: check against the model, train, publish."""

    def __init__(self, plan: Plan, config: FinetuneConfig, progress: Progress):
        self.plan, self.config, self.progress = plan, config, progress
        self.folder, self.original = plan.sources["base"], plan.sources.get("original")
        self.target, self.settings = plan.target, plan.settings

    def check(self, table: Table) -> None:
        """All that can be found wrong before the model is loaded."""
        from phicli.checkpoints.loading import check_base, linear_names
        from phicli.training.rows import prepare_rows

        self.device = choose_device(self.config.device)
        quantization = check_base(self.folder).get("quantization_config") or {}
        if self.original and quantization.get("quant_method") != "olive":
            raise BadInput("LoftQ needs a base that is a plain rounding of the original (AWQ scales it first)",
                           where=self.folder, hint="phicli quantize --algorithm gptq (or rtn), then --base that folder")
        self.targets = choose_targets(linear_names(self.folder), self.settings["target_modules"])
        names = ("seq_len", "mask_prompt", "eval_split", "seed")
        self.encoder = encoder = RowEncoder(self.folder, self.config, progress=self.progress)
        check_vocabulary(encoder.codec, self.config.text_template or "")
        check_layout(encoder, self.config.force_template, self.progress)
        rows = [table.encode(number, encoder) for number in range(len(table))]
        self.rows = prepare_rows(rows, **{n: self.settings[n] for n in names})
        if self.rows.cut:
            more = f", {self.rows.dropped} of them left out: nothing to learn in the rest" if self.rows.dropped else ""
            self.progress.warn(f"{self.rows.cut} of {len(table)} rows cut to {self.settings['seq_len']} tokens{more}")

    def train(self) -> stages.Manifest:
        from phicli.training.checkpoint import Checkpoint
        from phicli.training.passes import PASSES, Job
        from phicli.workflow.olive import run_pass

        key = {"inputs": self.plan.inputs, "settings": self.settings, "device": self.device,
               "versions": stages.versions()}
        checkpoint = Checkpoint(self.target.with_name(f".{self.target.name}.checkpoint"), key)
        names = ("max_steps", "batch_size", "learning_rate", "schedule", "seed")
        config = {n: self.settings[n] for n in names} | {
            "r": self.settings["lora_r"], "alpha": self.settings["lora_alpha"], "target_modules": self.targets,
            "lora_dropout": self.settings["lora_dropout"], "checkpoint_steps": self.config.checkpoint_steps,
            "original": str(self.original) if self.original else None, "job": Job(self.rows, checkpoint),
        }
        # cuBLAS repeats its sums exactly with it
        with environment(CUBLAS_WORKSPACE_CONFIG=":4096:8"), self.plan.publishing() as (fresh, manifest):
            result = run_pass(PASSES[self.settings["method"]], config, self.folder, fresh, device=self.device,
                              progress=self.progress)
            for path in sorted((fresh / "adapter").iterdir()):
                path.rename(fresh / path.name)
            (fresh / "adapter").rmdir()
            if self.encoder.source:  # what the model's folder does not say
                (fresh / TEMPLATE_FILE).write_text(self.encoder.source, encoding="utf-8")
            manifest.quality = {**result.model_attributes["quality"], "rows": len(self.rows.train),
                                "held_out_rows": len(self.rows.held_out), "rows_cut": self.rows.cut}
        checkpoint.remove()
        return manifest
