"""AWQ as an Olive pass, and Olive's own passes fed with the same calibration tokens."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from olive.data.config import DataConfig
from olive.data.registry import Registry
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.passes.pytorch.common import inherit_hf_from_hf
from torch.utils.data import Dataset

from phicli.config.steps import QuantizeConfig
from phicli.hardware.ranks import Ranks
from phicli.hub.models import read_headers
from phicli.progress import SILENT, Progress
from phicli.quantization.calibration import calibration_tokens, own_row_tokens, tokens_digest
from phicli.quantization.generated import generated_count, generated_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.groups import choose_group_size
from phicli.quantization.quantize import quantize_checkpoint
from phicli.quantization.refine import steps_of
from phicli.workflow.olive import pass_parameters

PASS_SETTINGS = ("group_size", "symmetric", "rounding", "calibration", "text_template", "format", "columns",
                 "chat_template", "chat_template_kwargs", "samples", "seq_len", "own_rows", "generated", "plan",
                 "save_plan", "refine", "seed")


class PhicliAwq(Pass):
    """AWQ through the Gram matrix of the inputs, with GPTQ rounding; writes an AWQ "gemm" checkpoint.

    Usable in any Olive workflow: `{"type": "PhicliAwq"}` once `phicli.quantization.olive_pass` is imported.
    """

    progress: Progress = SILENT

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {**pass_parameters(QuantizeConfig, PASS_SETTINGS),
                "modules_to_not_convert": PassConfigParam(
                    type_=list, default_value=[], description="Parts of module names to leave in float"),
                "ranks": PassConfigParam(
                    type_=Any, default_value=None, description="Ranks: the processes that do it together")}

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> HfModelHandler:
        settings: Any = config
        folder = Path(model.model_name_or_path)
        skip = tuple(settings.modules_to_not_convert)
        group_size, _ = choose_group_size(read_headers(folder), settings.group_size, skip, True, folder)
        device = "cuda" if self.accelerator_spec.accelerator_type == "gpu" else "cpu"
        ranks = settings.ranks or Ranks()
        parts = ranks.of_first(lambda: _calibration(folder, settings, device, self.progress))
        tokens = torch.cat(list(parts.values()))
        if len(tokens) > len(parts["text"]):  # those that refining holds out are of all kinds
            tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(settings.seed))]
        output = Path(output_model_path)
        output.mkdir(parents=True, exist_ok=True)
        report = quantize_checkpoint(
            folder, output, tokens,
            shape=GridShape(4, group_size, settings.symmetric), rounding=settings.rounding,
            device=device, skip=skip, plan=Path(settings.plan) if settings.plan else None,
            save_plan_to=Path(settings.save_plan) if settings.save_plan else None,
            refine=steps_of(settings.refine, device), seed=settings.seed, progress=self.progress, ranks=ranks,
        )
        handler = inherit_hf_from_hf(model, output_model_path, adapter_path=model.adapter_path)
        quality = {**asdict(report), "calibration_tokens": tokens_digest(tokens),
                   "calibration_sequences": {name: len(part) for name, part in parts.items()}}
        handler.model_attributes = {**(handler.model_attributes or {}), "quality": quality}
        return handler


def _calibration(folder: Path, settings: Any, device: str, progress: Progress) -> dict[str, torch.Tensor]:
    """What there is to calibrate on: of the text, of the user's rows, and written by the model; each (n, seq_len)."""
    count = generated_count(settings.generated, device)
    return {"text": calibration_tokens(folder, settings, progress),
            "own_rows": own_row_tokens(folder, settings.own_rows, settings, progress),
            "generated": generated_tokens(folder, count, settings.seq_len, device, settings.seed, progress)}


class _Tokens(Dataset):
    """Calibration tokens as Olive wants them: (model inputs, label) pairs."""

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        row = self.tokens[index]
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}, 0


@Registry.register_dataset("phicli_tokens")
def phicli_tokens(path: str, **_: Any) -> Dataset:
    """The dataset of a safetensors file with one tensor, `tokens`, int64 (rows, length)."""
    from safetensors.torch import load_file

    return _Tokens(load_file(path)["tokens"])


def tokens_data_config(path: Path) -> dict[str, Any]:
    """The data config that makes Olive's passes calibrate on a file that `phicli_tokens` reads."""
    skip = {"type": "skip_pre_process"}
    return DataConfig(
        name="calibration",
        load_dataset_config={"type": "phicli_tokens", "params": {"path": str(path)}},
        pre_process_data_config=skip,
        post_process_data_config={"type": "skip_post_process"},
        dataloader_config={"params": {"batch_size": 1}},
    ).model_dump()
