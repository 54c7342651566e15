"""Logits of a stage at the positions that predict a row's response, by torch or by onnxruntime-genai."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phicli.evaluation.stages import Stage
from phicli.hub.models import read_config, weight_files
from phicli.text import Encoded
from phicli.workflow.wording import worded

# float [response tokens, vocabulary]; row i is the distribution of the response's token i
Reader = Callable[[Encoded], np.ndarray]


def open_reader(stage: Stage, device: str, kernels: str = "auto") -> contextlib.AbstractContextManager[Reader]:
    """Load a stage; its memory is free again when the reader is dropped.

    Args:
        device: "auto", "cuda" or "cpu"; "auto" lets an ONNX model run on what it was built for.
        kernels: of ONNX models on a CPU, see `Session`.
    """
    return _onnx_reader(stage, device, kernels) if stage.onnx else _torch_reader(stage, device)


@contextlib.contextmanager
def _onnx_reader(stage: Stage, device: str, kernels: str) -> Iterator[Reader]:
    from phicli.inference.session import Session

    session = Session(stage.folder, device, kernels)
    yield lambda row: session.logits(row.ids, stage.adapter)[row.response_start - 1 : -1]


@contextlib.contextmanager
def _torch_reader(stage: Stage, device: str) -> Iterator[Reader]:
    import torch

    from phicli.checkpoints.loading import load_base
    from phicli.hardware.devices import choose_device

    device = choose_device(device)
    gc.collect()  # a model before this one may be held by a reference cycle only
    if device == "cuda":
        torch.cuda.empty_cache()
    model: Any = load_base(stage.folder, device, choose_dtype(stage.folder, device))
    if stage.adapter_path is not None:
        model = _with_adapter(model, stage.adapter_path)
    model.eval()

    def read(row: Encoded) -> np.ndarray:
        ids = torch.tensor([row.ids], device=device)
        wanted = len(row.ids) - row.response_start + 1
        with torch.inference_mode(), worded("the model cannot be run", stage.folder):
            logits = model(input_ids=ids, logits_to_keep=wanted, use_cache=False).logits[0, -wanted:-1]
        return logits.float().cpu().numpy()

    yield read


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    from phicli.checkpoints.peft_folder import check_weights

    check_weights(folder)
    with worded("the adapter does not fit the model", folder):
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False)


def choose_dtype(folder: Path, device: str) -> Any:
    """float32 where the model fits into memory so, else the checkpoint's own type.

    In 16 bits the rounding of activations shows up as a KL of about 1e-3, as large as what is looked for.
    """
    import torch

    from phicli.hardware.devices import available_memory

    if 2.5 * sum(path.stat().st_size for path in weight_files(folder)) < available_memory(device):
        return torch.float32
    config = read_config(folder)
    return getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"))
