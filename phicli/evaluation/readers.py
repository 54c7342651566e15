"""Logits of a stage at the positions that predict a row's response, by torch or by onnxruntime-genai."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phicli.evaluation.stages import Stage
from phicli.hub.models import read_config, weight_files
from phicli.text import Encoded
from phicli.workflow.wording import worded

if TYPE_CHECKING:
    from phicli.inference.session import Session

# float [targets, vocabulary]; row i is the distribution of the token at the row's target i
Reader = Callable[[Encoded], np.ndarray]


class Readers(contextlib.AbstractContextManager["Readers"]):
    """Opens stages one after the other. One model is in memory at a time; adapters of one ONNX model share a session.

    Args:
        device: "auto", "cuda" or "cpu"; "auto" lets an ONNX model run on what it was built for.
        kernels: of ONNX models on a CPU, see `Session`.
    """

    def __init__(self, device: str, kernels: str = "auto"):
        self._device, self._kernels = device, kernels
        self._session: Session | None = None

    def open(self, stage: Stage) -> contextlib.AbstractContextManager[Reader]:
        """Load a stage, for the length of a `with` block. Raises PhicliError: as `Session` or `load_base` does."""
        if stage.onnx:
            return contextlib.nullcontext(self._onnx_reader(stage))
        self.close()
        return _torch_reader(stage, self._device)

    def _onnx_reader(self, stage: Stage) -> Reader:
        from phicli.inference.session import Session

        session, wanted = self._session, stage.adapter is not None
        if session is None or session.folder != stage.folder or wanted > session.takes_adapters:
            self.close()
            session = self._session = Session(stage.folder, self._device, self._kernels, adapters=wanted)
        return lambda row: session.logits(row.ids, stage.adapter)[np.array(row.targets) - 1]

    def close(self) -> None:
        """Give the memory of the session back that is open, if one is."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def __exit__(self, *error: object) -> None:
        self.close()


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
        wanted = len(row.ids) - row.targets[0] + 1
        places = np.array(row.targets) - row.targets[0]
        with torch.inference_mode(), worded("the model cannot be run", stage.folder):
            logits = model(input_ids=ids, logits_to_keep=wanted, use_cache=False).logits[0, -wanted:][places]
        return logits.float().cpu().numpy()

    yield read


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    from phicli.checkpoints.peft_folder import check_patterns, check_weights

    check_patterns(folder)
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
