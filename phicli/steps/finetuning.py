"""The work of the finetune stage, once names, files and settings are clear: check against the model, train, publish."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.names import FINETUNED, checkpoint_place, unpublished_place
from phicli.artifacts.stages import Manifest
from phicli.checkpoints.linears import linear_shapes
from phicli.checkpoints.loading import check_base, linear_names
from phicli.checkpoints.peft_folder import Lora
from phicli.config.steps import FinetuneConfig
from phicli.dataset.encoding import RowEncoder, check_layout
from phicli.dataset.table import Table
from phicli.errors import BadInput
from phicli.export.sources import Source
from phicli.hardware.devices import choose_device, limited_memory
from phicli.hardware.ranks import Ranks
from phicli.hub.vocabulary import check_vocabulary
from phicli.libraries import environment
from phicli.progress import Progress
from phicli.resources.estimates import GB
from phicli.text.layout import TEMPLATE_FILE
from phicli.training.batches import Order, batches_an_epoch, draw_pool
from phicli.training.checkpoint import Checkpoint
from phicli.training.defaults import WITHOUT_SLOTS, choose_targets
from phicli.training.fitting import Fitting
from phicli.training.passes import PASSES, Job
from phicli.training.recipe import count_steps
from phicli.training.reporting import make_reporter
from phicli.training.rows import RowSource, TableRows, prepare_rows
from phicli.units import number
from phicli.workflow.olive import run_pass
from phicli.workflow.plan import Plan

TOO_LONG = {"cut": "cut, with the token that ends the last turn", "drop": "left out", "split": "split into several"}
PASSED_ON = ("max_steps", "epochs", "batch_size", "learning_rate", "schedule", "seed", "eval_steps", "keep",
             "lora_dropout")
Fit = Callable[[Path, Checkpoint], dict[str, Any]]  # as `Work.fit`


class Work:
    """One adapter. longest: tokens of the longest row that `check` looked at."""

    def __init__(self, plan: Plan, config: FinetuneConfig, progress: Progress):
        self.plan, self.config, self.progress = plan, config, progress
        self.folder, self.original = plan.sources["base"], plan.sources.get("original")
        self.target, self.settings = plan.target, plan.settings
        self.aside = replace(plan, target=unpublished_place(self.target))
        self.longest = 0
        self.start: dict[str, Lora] | None = None

    def check(self, table: Table, eval_table: Table | None) -> None:
        """All that can be found wrong before the model is loaded."""
        self.device = choose_device(self.config.device)
        quantization = check_base(self.folder).get("quantization_config") or {}
        if self.original and quantization.get("quant_method") != "olive":
            raise BadInput("LoftQ needs a base that is a plain rounding of the original (AWQ scales it first)",
                           where=self.folder, hint="phicli quantize --algorithm gptq && phicli finetune --method loftq "
                           f"--base {shlex.quote(str(self.config.root_folder / 'gptq'))}")
        if "from_adapter" in self.plan.sources:
            source = Source("--from-adapter", self.plan.sources["from_adapter"])
            for remark in source.check_kind(self.folder):
                self.progress.warn(f"--from-adapter: {remark}")
            source.check(linear_shapes(self.folder), self.plan.inputs["base"], self.progress)
            self.start = source.loras
        else:
            self.targets = choose_targets(linear_names(self.folder), self.settings["target_modules"])
        if (method := self.settings["method"]) in WITHOUT_SLOTS:
            self.progress.warn(f"an adapter of --method {method} cannot be swapped in the model that optimize builds; "
                               f"phicli optimize --merge {self.config.name} makes a model of its own with it")
        self.aside.check_theirs()
        adapters = [path for name, path in self.plan.sources.items() if name == "from_adapter"]
        self.encoder = encoder = RowEncoder(self.folder, self.config, adapters, self.progress)
        check_vocabulary(encoder.codec, self.config.text_template or "")
        check_layout(encoder, self.config.force_template, self.progress)
        self.sources = [TableRows(found, encoder) for found in (table, eval_table) if found]
        self._prepare(*self.sources)

    def _prepare(self, source: TableRows, eval_source: TableRows | None = None) -> None:
        """Hold rows out, look at those that come first, and say what there is. Raises BadInput for a refused row."""
        size, seed = self.settings["batch_size"], self.settings["seed"]
        fitting = Fitting(*(self.settings[name] for name in ("seq_len", "too_long", "mask_prompt")))
        try:
            rows = self.rows = prepare_rows(source, fitting, eval_split=self.settings["eval_split"], seed=seed,
                                            eval_source=eval_source)
            self._check_refused()
            first = draw_pool(rows, Order(rows.train, seed), size, 0, 0)
        finally:  # where no row has a token to learn, since all were refused, that is the cause
            self._check_refused()
        self.longest = max(len(row.ids) for row in [*rows.held_out, *(row for batch in first for row in batch.rows)])
        steps = count_steps(self.settings["max_steps"], self.settings["epochs"], len(rows.train), size)
        whose = f" of {eval_source.table.name}" if eval_source is not None else ""
        self.progress.note(f"{len(rows.train):,} rows to train on, {len(rows.held_out)} held out{whose}; "
                           f"{steps:,} steps of up to {size} rows: "
                           f"{number(steps / batches_an_epoch(len(rows.train), size), 3)} epochs")
        if eval_source is not None and (shared := _shared(source, eval_source)):
            self.progress.warn(f"{shared:,} rows to train on ask what rows of {eval_source.table.name} ask: the "
                               "held-out loss will look too good")
        if long := sum(batch.long for batch in first):
            self.progress.warn(f"{long} of the first {sum(batch.drawn for batch in first)} rows have more than "
                               f"{fitting.seq_len} tokens: such rows are {TOO_LONG[fitting.too_long]} (--too-long)")
        for rows_of_files in self.sources:
            rows_of_files.table.forget_keys()

    def _check_refused(self) -> None:
        for error in (error for source in self.sources for error in source.refused.values()):
            raise error

    def train(self, fit: Fit | None = None) -> Manifest:
        """Train and publish.

        Args:
            fit: does what `fit` does, elsewhere.

        Raises:
            BadInput: the held-out loss did not fall; the adapter is in `aside` then.
        """
        key = {"inputs": self.plan.inputs, "settings": self.settings, "device": self.device,
               "versions": stages.versions()}
        checkpoint = Checkpoint(checkpoint_place(self.target), key)
        # cuBLAS repeats its sums exactly with it
        with environment(CUBLAS_WORKSPACE_CONFIG=":4096:8"), self.plan.publishing() as (fresh, manifest):
            manifest.quality = (fit or self.fit)(fresh, checkpoint)
            if self.encoder.source:  # what the model's folder does not say
                (fresh / "adapter" / TEMPLATE_FILE).write_text(self.encoder.source, encoding="utf-8")
            self._check_gain(manifest.quality, fresh / "adapter")
            _move(fresh / "adapter", fresh)
        checkpoint.remove()
        shutil.rmtree(self.aside.target, ignore_errors=True)
        return manifest

    def fit(self, output: Path, checkpoint: Checkpoint, ranks: Ranks | None = None) -> dict[str, Any]:
        """Train; the first process puts the adapter into `output`. Gives the figures of it."""
        ranks = ranks or Ranks()
        most = self.config.gpu_memory
        with limited_memory(self.device, most and most * GB):
            result = run_pass(PASSES[self.settings["method"]], self._options(checkpoint, ranks), self.folder, output,
                              device=self.device, progress=self.progress)
        found = {**result.model_attributes["quality"], "held_out_rows": len(self.rows.held_out)}
        self._tell(found)
        return found

    def _options(self, checkpoint: Checkpoint, ranks: Ranks) -> dict[str, Any]:
        logs = Path(self.config.logging_dir or self.config.root_folder / FINETUNED / ".runs")
        reporter = make_reporter(self.config.report_to if ranks.first else "none", logs, self.config.name,
                                 self.progress)
        return {name: self.settings[name] for name in PASSED_ON} | {
            "r": self.settings["lora_r"], "alpha": self.settings["lora_alpha"],
            "target_modules": None if self.start else self.targets, "checkpoint_steps": self.config.checkpoint_steps,
            "original": str(self.original) if self.original else None,
            "job": Job(self.rows, checkpoint, reporter, self.start, ranks),
        }

    def _tell(self, found: dict[str, Any]) -> None:
        """How much of the data was seen."""
        text = (f"saw {found['rows_seen']:,} rows, {number(found['epochs'], 3)} epochs of {found['rows']:,}: "
                f"{found['tokens']:,} tokens, {found['trained_tokens']:,} of them trained")
        if found["rows_too_long"]:
            text += f"; {found['rows_too_long']:,} rows too long"
        if found["rows_left_out"]:
            text += f"; {found['rows_left_out']:,} left out, with nothing to learn within the limit"
        self.progress.note(text)
        if refused := [error for source in self.sources for error in source.refused.values()]:
            self.progress.warn(f"{len(refused):,} rows left out that cannot be laid out; the first: {refused[0]}")

    def _check_gain(self, found: dict[str, Any], adapter: Path) -> None:
        """Refuse an adapter that is worse than what training began with, or as good."""
        before, after = found["held_out_loss_before"], found["held_out_loss_after"]
        if before is None or after < before:
            return
        message = f"the held-out loss is {after:.4f} after training, {before:.4f} before: no gain"
        if self.config.publish_anyway:
            self.progress.warn(message)
            return
        with self.aside.publishing() as (fresh, manifest):
            _move(adapter, fresh)
            manifest.quality = found
        raise BadInput(f"{message}, so it is not published; the adapter is kept in {self.aside.target}",
                       where=self.target, hint="a lower --learning-rate, fewer steps, other rows; or the same command "
                       "with --publish-anyway, which does not train again")


def _shared(source: RowSource, other: RowSource) -> int:
    """How many rows ask what a row of the other source asks."""
    import numpy as np

    asked, keys = np.unique(other.keys()), source.keys()
    places = np.searchsorted(asked, keys).clip(max=len(asked) - 1)
    return int((asked[places] == keys).sum())


def _move(folder: Path, target: Path) -> None:
    for path in sorted(folder.iterdir()):
        path.rename(target / path.name)
    folder.rmdir()
