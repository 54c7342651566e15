"""Names of the folders and files under a root, each written here only; users and manifests know them."""

from pathlib import Path

ROOT_MODEL = "phicli-model.json"  # in the root: which model it is of
ONNX_FOLDER = "onnx-ao"  # in the root: the model that optimize builds
FINETUNED = "ft"  # in the root: a folder an adapter, that finetune trains
MERGED = "merged"  # in the root: a folder a model that an adapter has been merged into
EXPORTED = "export"  # in the root: what export writes
EVALUATION = "evaluation.json"  # in the root: what evaluate measures
BENCHMARK = "benchmark.json"  # in the root: what benchmark measures
ACCEPTED = "accepted.json"  # in the root: what gate compares with
SEARCH = "search/search.json"  # in the root: what search found
REPORT = "report"  # in the root, with a suffix: the page that report writes
GENAI_CONFIG = "genai_config.json"  # in the model's folder
ADAPTERS = "adapters"  # in the model's folder: a file an adapter
ADAPTER_SUFFIX = ".onnx_adapter"
ADAPTER_CONFIG = "adapter_config.json"  # in an adapter's folder, as PEFT names it
CHECKPOINT_FILES = ("state.json", "state.safetensors")  # of an interrupted training


def checkpoint_place(adapter: Path) -> Path:
    """Where training keeps its state, beside the adapter's folder."""
    return adapter.with_name(f".{adapter.name}.checkpoint")


def unpublished_place(adapter: Path) -> Path:
    """Where an adapter goes that is no better than what training began with."""
    return adapter.with_name(f".{adapter.name}.unpublished")
