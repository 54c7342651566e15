"""Training's state on disk, so that it can go on after an interruption: tensors in safetensors, the rest in JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from phicli.artifacts import stages
from phicli.artifacts.names import CHECKPOINT_FILES
from phicli.artifacts.places import check_folder_place
from phicli.artifacts.reading import read_json
from phicli.artifacts.tensors import check_safetensors
from phicli.errors import BadInput

Weights = dict[str, Tensor]  # of an adapter, by the parameter's name
BEST = "best/"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
STATE, TENSORS = CHECKPOINT_FILES


class Checkpoint:
    """A folder with the last saved state of one training run.

    key: what the run is made of; the state of a run with another key does not count.
    Raises BadInput where the folder is a link, or holds something else.
    """

    def __init__(self, folder: Path, key: dict[str, Any]):
        self.folder, self.key = folder, json.loads(json.dumps(key))
        check_folder_place(folder)
        if folder.is_symlink() or (folder.is_dir() and {p.name for p in folder.iterdir()} - set(CHECKPOINT_FILES)):
            raise BadInput("no checkpoint of phicli's, but what stands where one is needed", where=folder,
                           hint="move it away")

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any],
             best: Weights | None = None) -> None:
        """Write weights, optimizer, state and the best weights so far, whole or not at all.

        Raises:
            Missing: no space, no permission.
        """
        tensors = {f"{BEST}{name}": weight for name, weight in (best or {}).items()}
        for name, parameter in trainable(model).items():
            tensors[f"weight/{name}"] = parameter.detach()
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
        with stages.publishing(self.folder) as fresh:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, fresh / TENSORS)
            (fresh / STATE).write_text(json.dumps({"key": self.key, "state": state}), encoding="utf-8")

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], Weights | None] | None:
        """Put the saved weights and moments in place.

        Returns:
            the state and the best weights, if any were kept; None where nothing of this run was saved.
        """
        stages.settle(self.folder)
        try:
            document = read_json(self.folder / STATE)
            if document["key"] != self.key:
                return None
            check_safetensors(self.folder / TENSORS)
            with safe_open(self.folder / TENSORS, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._restore(tensors, model, optimizer, document["state"]["step"])
        except (BadInput, OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None
        best = {name.removeprefix(BEST): t for name, t in tensors.items() if name.startswith(BEST)}
        return document["state"], best or None

    def _restore(
        self, tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, step: int
    ) -> None:
        names = list(trainable(model))
        moments = [{m: tensors[f"{m}/{n}"] for m in MOMENTS} | {"step": torch.tensor(float(step))} for n in names]
        weights = [tensors[f"weight/{n}"] for n in names]  # all there before anything is changed
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(enumerate(moments))})
        set_weights(model, dict(zip(names, weights, strict=True)))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copy_weights(model: nn.Module) -> Weights:
    """What training has made of the parameters that it changes, in the host's memory."""
    return {name: p.detach().cpu().clone() for name, p in trainable(model).items()}


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Put weights into the model's very tensors."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(weights[name])
