"""Olive's adapter passes, on our base model and training loop.

What an adapter is (LoRA, DoRA, LoftQ, LoHa, LoKr, and their settings) stays Olive's and peft's; loading the base
without gptqmodel and bitsandbytes, and training on rows padded to their own length, are put in. Usable in any Olive
workflow: `{"type": "Int4LoRA", "data": …}` once this module is imported.
"""

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pass_config import BasePassConfig
from olive.passes.pytorch import lora as olive_lora

from phicli.checkpoints.loading import linear_names, load_base
from phicli.checkpoints.peft_folder import Lora
from phicli.config.steps import FinetuneConfig
from phicli.dataset.encoding import RowEncoder
from phicli.dataset.table import Table
from phicli.hardware.devices import cpu_takes_bfloat16
from phicli.hardware.ranks import Ranks
from phicli.hub.datasets import find_sources
from phicli.hub.models import read_config
from phicli.progress import SILENT, Progress
from phicli.training.checkpoint import Checkpoint
from phicli.training.continuing import continue_from
from phicli.training.defaults import ALL_LINEAR, choose_targets, default_learning_rate
from phicli.training.fitting import Fitting
from phicli.training.loftq import start_from_residual
from phicli.training.recipe import Recipe, count_steps
from phicli.training.reporting import Reporter
from phicli.training.rows import Rows, TableRows, prepare_rows
from phicli.training.training import Trainer
from phicli.workflow.olive import pass_parameters
from phicli.workflow.wording import worded

_FROM_SETTINGS = ("max_steps", "epochs", "batch_size", "learning_rate", "schedule", "checkpoint_steps", "eval_steps",
                  "keep", "seq_len", "too_long", "mask_prompt", "eval_split", "data", "text_template",
                  "format", "columns", "chat_template", "chat_template_kwargs", "seed")


class Job:
    """What phicli hands over beside the settings: rows already prepared, where the state of training is saved, where
    figures go, the adapter to continue from, the processes that train together.

    Not a dataclass, which Olive's config would turn into a dict.
    """

    def __init__(self, rows: Rows, checkpoint: Checkpoint | None = None, reporter: Reporter | None = None,
                 start: dict[str, Lora] | None = None, ranks: Ranks | None = None):
        self.rows, self.checkpoint, self.reporter, self.start = rows, checkpoint, reporter, start
        self.ranks = ranks or Ranks()


class Int4Base:
    """What all the passes share; mixed into each of Olive's."""

    progress: Progress = SILENT
    use_dora = False
    accelerator_spec: AcceleratorSpec

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        config = super()._default_config(accelerator_spec)  # type: ignore[misc]
        config["train_data_config"] = config["train_data_config"].model_copy(update={"required": False})
        config |= pass_parameters(FinetuneConfig, _FROM_SETTINGS)
        config["original"] = PassConfigParam(type_=str, default_value=None, description="LoftQ: unquantized model")
        config["job"] = PassConfigParam(
            type_=Any, default_value=None, description="A Job, in place of data")
        return config

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> HfModelHandler:
        settings: Any = config
        folder = Path(model.model_name_or_path)
        job: Job = settings.job or Job(_load_rows(folder, settings))
        if settings.learning_rate is None:
            settings.learning_rate = default_learning_rate(folder)
        settings.max_steps = count_steps(settings.max_steps, settings.epochs, len(job.rows.train), settings.batch_size)
        recipe = Recipe(**{f.name: getattr(settings, f.name) for f in fields(Recipe)})
        cuda = self.accelerator_spec.accelerator_type == "gpu"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        half = cuda or cpu_takes_bfloat16(read_config(folder).get("hidden_size") or 0)
        device, dtype = "cuda" if cuda else "cpu", torch.bfloat16 if half else torch.float32
        if job.ranks.sharded:
            from phicli.training.sharding import Shards, load_once  # FSDP takes long to import

            base = load_once(folder, dtype, job.ranks)
        else:
            base = load_base(folder, device, dtype)
        torch.manual_seed(recipe.seed)  # of the adapter's first values
        with worded("peft cannot put the adapter into this model", folder):
            if job.start:
                adapted = continue_from(base, job.start, settings.lora_dropout)
            else:
                settings.target_modules = choose_targets(linear_names(folder), settings.target_modules or [ALL_LINEAR])
                adapted = self.init_adapters(  # type: ignore[attr-defined]
                    base, config, task=model.task, use_dora=self.use_dora)
        tokens = -(-recipe.batch_size // job.ranks.count) * job.rows.fitting.seq_len
        shards = Shards(adapted, device, job.ranks, tokens) if job.ranks.sharded else None
        trainer = Trainer(adapted, job.rows, recipe, job.checkpoint, self.progress, job.reporter, job.ranks, shards)
        figures = trainer.run()
        result = deepcopy(model)
        result.model_attributes = {**(result.model_attributes or {}), "quality": figures}
        if job.ranks.first:
            result.set_resource("adapter_path", _save(adapted, Path(output_model_path) / "adapter"))
        return result


class Int4LoRA(Int4Base, olive_lora.LoRA):
    """LoRA (Hu et al., 2021, arXiv:2106.09685)."""


class Int4DoRA(Int4Base, olive_lora.DoRA):
    """DoRA (Liu et al., 2024, arXiv:2402.09353)."""

    use_dora = True


class Int4LoHa(Int4Base, olive_lora.LoHa):
    """LoHa (Hyeon-Woo et al., 2021, arXiv:2108.06098)."""


class Int4LoKr(Int4Base, olive_lora.LoKr):
    """LoKr (Yeh et al., 2023, arXiv:2309.14859)."""


class Int4LoftQ(Int4Base, olive_lora.LoftQ):
    """LoftQ (Li et al., 2023, arXiv:2310.08659) on a base that is quantized already; see `loftq`."""

    def init_adapters(self, model: Any, config: Any, **kwargs: Any) -> Any:
        adapted = olive_lora.LoRA.init_adapters(self, model, config, **kwargs)
        start_from_residual(adapted, Path(config.original))
        return adapted


PASSES = {"lora": Int4LoRA, "dora": Int4DoRA, "loftq": Int4LoftQ, "loha": Int4LoHa, "lokr": Int4LoKr}


def _save(adapted: Any, adapter: Path) -> Path:
    kept = adapted.peft_config["default"]
    kept.target_modules = sorted(kept.target_modules)  # peft's set has another order in each process
    adapted.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # peft's empty model card
    return adapter


def _load_rows(folder: Path, settings: Any) -> Rows:
    data = [settings.data] if isinstance(settings.data, str) else settings.data
    source = TableRows(Table(find_sources(data), settings), RowEncoder(folder, settings))
    fitting = Fitting(settings.seq_len, settings.too_long, settings.mask_prompt)
    return prepare_rows(source, fitting, eval_split=settings.eval_split, seed=settings.seed)
