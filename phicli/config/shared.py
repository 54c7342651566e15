"""Settings that several steps have, each written once: a function gives the field for a step's class."""

import re
from pathlib import Path
from typing import Any

from phicli.config.setting import setting

DEFAULT_TEMPLATE = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"


def model() -> Any:
    return setting("microsoft/Phi-3.5-mini-instruct", "Model: Hugging Face id, folder, or 'tiny' (built in)",
                   shared=True, flags=("--model", "-m"), path=True, recorded=False)


def root() -> Any:
    return setting(None, "Folder of all results [default: models/<short name of the model>]", shared=True,
                   path=True, recorded=False)


def device() -> Any:
    return setting("auto", "Where to compute", shared=True, choices=("auto", "cuda", "cpu"), recorded=False)


def kernels() -> Any:
    return setting("auto", "Matrix products on a CPU: phicli's own, onnxruntime's, or the faster of both", shared=True,
                   choices=("auto", "phicli", "onnxruntime"), recorded=False)


def data(argument: bool = False) -> Any:
    if argument:
        return setting("data/data_sample_travel.jsonl", "Rows, JSONL (.gz too), or - for stdin; without it what the "
                       "setting data names", shared=True, argument=True, metavar="FILE", path=True, recorded=False)
    return setting("data/data_sample_travel.jsonl", "Training rows, JSONL (.gz too)", shared=True,
                   flags=("--data", "-d"), path=True, recorded=False)


def eval_data() -> Any:
    return setting("data/data_eval_travel.jsonl", "Held-out rows, JSONL", shared=True, path=True, recorded=False)


def text_template() -> Any:
    return setting(DEFAULT_TEMPLATE, "How a row becomes text; {field} takes a row's field", shared=True)


def adapter() -> Any:
    return setting(None, "Name of the adapter", shared=True, flags=("--adapter", "-a"), recorded=False)


def seed() -> Any:
    return setting(0, "Seed of all random numbers: the same seed gives the same result", shared=True, minimum=0)


def output() -> Any:
    return setting(None, "Folder for the result [default: under the root]", once=True, flags=("--output", "-o"),
                   path=True, recorded=False)


def force() -> Any:
    return setting(False, "Do it again even if the result is up to date", once=True, flags=("--force",),
                   recorded=False)


def default_root(name: str) -> str:
    """`models/phi` for a Phi of Microsoft's, `models/<short name>` for any other model."""
    if name.startswith("azureml:"):  # azureml://registries/R/models/NAME/versions/4, or azureml:NAME:4
        name = re.sub(r".*/models/([^/]+)/.*|azureml:([^:@]+).*", r"\1\2", name)
    short = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    if short in (".", ".."):
        short = Path(name).resolve().name.lower()
    return "models/phi" if name.lower().startswith("microsoft/phi") else f"models/{short or 'model'}"
