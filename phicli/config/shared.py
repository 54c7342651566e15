"""Settings that several steps have, each written once: a function gives the field for a step's class."""

import re
from pathlib import Path
from typing import Any

from phicli.config.setting import setting

COLUMNS = ("messages", "prompt", "response", "input", "system", "history", "tools", "text")
DATA = ("data/data_sample_travel.jsonl",)  # these two are in the package, for folders that have none of that name
EVAL_DATA = "data/data_eval_travel.jsonl"
MODELS = "models"  # where the usual roots are
ROWS, RUNNING = "Rows", "Running"  # headings of help
PROVIDERS = ("cpu", "cuda", "dml", "webgpu", "tensorrt", "openvino")
ROW_FORMATS = ("messages", "sharegpt", "alpaca", "prompt-response", "text")


def model() -> Any:
    return setting("microsoft/Phi-3.5-mini-instruct", "Hugging Face id, folder, GGUF file, azureml://…, or built-in "
                   "tiny [default: the one used last here, else microsoft/Phi-3.5-mini-instruct]", metavar="MODEL",
                   shared=True, flags=("--model", "-m"), path=True, reference=True, recorded=False)


def root() -> Any:
    return setting(None, "Folder for all results [default: models/phi for a Phi of Microsoft's, else "
                   "models/<short name>]", metavar="FOLDER", shared=True, path=True, recorded=False)


def device() -> Any:
    return setting("auto", "Where to compute; auto: cuda if usable", shared=True,
                   choices=("auto", "cuda", "cpu"), recorded=False)


def provider() -> Any:
    return setting("auto", "Execution provider that runs an ONNX model; auto: the one that it was built for, on the "
                   "device", shared=True, choices=("auto", *PROVIDERS), recorded=False, panel=RUNNING)


def kernels() -> Any:
    return setting("auto", "Kernels that multiply quantized matrices on a CPU; auto: the faster ones",
                   shared=True, choices=("auto", "phicli", "onnxruntime"), recorded=False, panel=RUNNING)


def data(argument: bool = False) -> Any:
    if argument:
        return setting(DATA, "Data: a file (JSON Lines, JSON, CSV, TSV, Parquet, Arrow, compressed too), a folder with "
                       "such files, - for stdin [default: the setting data]", shared=True, argument=True,
                       metavar="FILE...", path=True, reference=True, recorded=False)
    return setting(DATA, "Training data: file, folder, or owner/name on the Hugging Face hub; may be repeated, FILE:2 "
                   "counts twice", metavar="DATA", shared=True, flags=("--data", "-d"), path=True, reference=True,
                   recorded=False)


def eval_data() -> Any:
    return setting(EVAL_DATA, "Held-out data to measure on: file, folder, or owner/name on the Hugging Face hub",
                   metavar="DATA", shared=True, path=True, reference=True, recorded=False)


def text_template() -> Any:
    return setting(None, "Template that makes text of a row, in place of the model's chat template; {prompt} stands "
                   "for its field prompt", shared=True, panel=ROWS)


def data_format() -> Any:
    return setting(None, "Format of rows [default: found by their fields]", shared=True, choices=ROW_FORMATS,
                   panel=ROWS)


def columns() -> Any:
    return setting((), "Names of fields: prompt=question takes the prompt from the field question; may be repeated",
                   shared=True, flags=("--map",), metavar="NAME=FIELD", panel=ROWS)


def chat_template() -> Any:
    return setting(None, "File with a chat template (Jinja) in place of the model's own", shared=True, path=True,
                   recorded=False, panel=ROWS)


def chat_template_kwargs() -> Any:
    return setting((), "Variable for the chat template, such as enable_thinking=false; may be repeated", shared=True,
                   metavar="NAME=VALUE", panel=ROWS)


def adapter() -> Any:
    return setting(None, "Adapter [default: chat uses the only one, with --prompt none; evaluate all]", metavar="NAME",
                   shared=True, flags=("--adapter", "-a"), recorded=False)


def gpus(of: str) -> Any:
    return setting("1", f"GPUs of one machine that share {of}: a number, or all", metavar="N", recorded=False,
                   panel=RUNNING)


def seed() -> Any:
    return setting(0, "Random seed: the same seed gives the same result", shared=True, minimum=0, panel=RUNNING)


def output() -> Any:
    return setting(None, "Folder for the result [default: a folder under the root]", once=True,
                   flags=("--output", "-o"), path=True, recorded=False, panel=RUNNING)


def force() -> Any:
    return setting(False, "Run even if the result is up to date", once=True, flags=("--force",),
                   recorded=False)


def default_root(name: str) -> str:
    """`models/phi` for a Phi of Microsoft's, `models/<short name>` for any other model."""
    if name.startswith("azureml:"):  # azureml://registries/R/models/NAME/versions/4, or azureml:NAME:4
        name = re.sub(r".*/models/([^/]+)/.*|azureml:([^:@]+).*", r"\1\2", name)
    short = name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower().removesuffix(".gguf")
    if short in (".", ".."):
        short = Path(name).resolve().name.lower()
    return f"{MODELS}/phi" if name.lower().startswith("microsoft/phi") else f"{MODELS}/{short or 'model'}"
