"""Logits of a stage at the positions that predict a row's response, by torch or by onnxruntime-genai."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phicli.evaluation.stages import Stage
from phicli.inference.runners import Runner, SessionRunner, TorchRunner
from phicli.inference.torch_model import load_torch
from phicli.text import Encoded
from phicli.workflow.wording import worded

if TYPE_CHECKING:
    from phicli.inference.session import Session


@dataclass(frozen=True)
class Reader:
    """A stage that is loaded.

    logits: of a row, float [targets, vocabulary]; entry i is the distribution of the token at the row's target i.
    runner: generates. context: the longest text, in tokens.
    """

    logits: Callable[[Encoded], np.ndarray]
    runner: Runner
    context: int

    def __call__(self, row: Encoded) -> np.ndarray:
        return self.logits(row)


class Readers(contextlib.AbstractContextManager["Readers"]):
    """Opens stages one after the other. One model is in memory at a time; adapters of one ONNX model share a session.

    Args:
        device: "auto", "cuda" or "cpu"; "auto" lets an ONNX model run on what it was built for.
        kernels: of ONNX models on a CPU, see `Session`. runs_on: what opens ONNX models in place of the device.
    """

    def __init__(self, device: str, kernels: str = "auto", runs_on: str | None = None):
        self._device, self._kernels, self._runs_on = device, kernels, runs_on or device
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
            session = self._session = Session(stage.folder, self._runs_on, self._kernels, adapters=wanted)
        return Reader(lambda row: session.logits(row.ids, stage.adapter)[np.array(row.targets) - 1],
                      SessionRunner(session, stage.adapter), session.context)

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

    model = load_torch(stage.folder, device, stage.adapter_path)

    def read(row: Encoded) -> np.ndarray:
        ids = torch.tensor([row.ids], device=model.device)
        wanted = len(row.ids) - row.targets[0] + 1
        places = np.array(row.targets) - row.targets[0]
        with torch.inference_mode(), worded("the model cannot be run", stage.folder):
            logits = model(input_ids=ids, logits_to_keep=wanted, use_cache=False).logits[0, -wanted:][places]
        return logits.float().cpu().numpy()

    yield Reader(read, TorchRunner(model), int(getattr(model.config, "max_position_embeddings", 2048)))
