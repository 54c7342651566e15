"""From what a user calls a model to a checked folder with its files."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import check_regular, read_json
from phicli.artifacts.stages import check_whole, read_manifest
from phicli.artifacts.tensors import check_safetensors
from phicli.config.root_model import BUILT_IN as BUILT_IN
from phicli.config.root_model import original_of
from phicli.config.steps import QUANTIZE_ALGORITHMS
from phicli.errors import BadInput, Missing, UsageError
from phicli.hub.converted import needs_conversion, with_fast_tokenizer
from phicli.hub.fetching import cached_file, fetch_file, fetch_model
from phicli.hub.fitting import check_config, check_weights_fit
from phicli.hub.gguf import is_gguf, judge_remote, unpack_gguf, unpacked_gguf
from phicli.hub.whole import A_MODEL, cured
from phicli.progress import SILENT, Progress

TRAINED_ON = ("awq", "olive")  # quantized models that finetune and optimize take


def resolve_model(reference: str, progress: Progress = SILENT) -> Path:
    """The folder of a built-in model, a local folder, or a model of Hugging Face's or Azure ML's, fetched into a cache;
    of a GGUF file, here or on the hub, the folder that it is unpacked to.

    Raises:
        BadInput: no such model or folder, one that `check_model` or `judge_gguf` refuses, or a damaged stage.
        Missing: offline and not in the cache, no access, or as `unpack_gguf`. RemoteError: the hub cannot be reached.
    """
    if reference.startswith("azureml:"):
        from phicli.azure.download import fetch_reference

        folder = _inside(fetch_reference(reference, progress))
    elif is_gguf(reference):
        folder = unpack_gguf(local_model(reference) or fetch_file(reference, judge_remote, progress),
                             progress)
    else:
        folder = local_model(reference) or fetch_model(reference, judge_config, progress)
    check_whole(folder)
    if needs_conversion(folder):
        judge_config(folder)
        folder = with_fast_tokenizer(folder, progress)
    check_model(folder)
    return folder


def local_tokenizer(reference: str, unpack: Progress | None = None) -> Path | None:
    """The folder that has the model's tokenizer; None if the model would have to be fetched first.

    unpack: a GGUF file on this machine is unpacked, if it has not been before.

    Raises:
        BadInput: no such model or folder. As `unpack_gguf`.
    """
    if reference.startswith("azureml:"):
        from phicli.azure.download import cached_reference

        folder = cached_reference(reference)
        return _inside(folder) if folder else None
    place = local_model(reference) or cached_file(reference)
    if place and is_gguf(reference):
        return unpack_gguf(place, unpack) if unpack else unpacked_gguf(place)
    folder = place.parent if place and not place.is_dir() else place
    return with_fast_tokenizer(folder, unpack or SILENT) if folder and needs_conversion(folder) else folder


def local_model(reference: str) -> Path | None:
    """The folder of a built-in model or a local one, or a local GGUF file; None if the reference is of the hub's.

    Raises:
        BadInput: neither can be.
    """
    folder = BUILT_IN / reference
    if not reference.strip() or not folder.is_relative_to(BUILT_IN) or not (folder / "config.json").is_file():
        folder = Path(reference).expanduser()
    file = is_gguf(reference)
    if folder.is_dir() or (file and folder.is_file()):
        return folder
    if folder.exists() or reference.count("/") < 1 + file or reference.count("/") > (9 if file else 1) or (
            reference[0] in "./~"):
        known = ", ".join(sorted(p.name for p in BUILT_IN.iterdir() if p.is_dir()))
        raise BadInput(f"no such model {'file' if file else 'folder'}", where=reference,
                       hint=f"a folder, a GGUF file, an id like microsoft/Phi-3.5-mini-instruct, or built in: {known}")
    return None


def _inside(folder: Path) -> Path:
    """Where the model lies in a registry's package, which may keep it under folders of MLflow's."""
    found = sorted(folder.rglob("config.json"), key=lambda path: len(path.parts))
    return found[0].parent if found else folder


@cured
def check_model(folder: Path) -> dict[str, Any]:
    """Check that the folder holds a complete Hugging Face model; returns its config.

    Raises:
        BadInput: no or broken config.json, no tokenizer, missing or truncated weights, weights that are no safetensors
            or another model's than the config's.
    """
    check_regular(folder)
    config = judge_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput("no tokenizer.json", where=folder)
    check_weights_fit(config, read_headers(folder), folder)
    return config


def check_not_quantized(config: dict[str, Any], where: str | Path) -> None:
    """Raise BadInput where a model's config says that it is quantized: quantize takes no such model."""
    if "quantization_config" not in config:
        return
    method, original = (config["quantization_config"] or {}).get("quant_method"), original_of(Path(where))
    hint = shlex.join(["phicli", "quantize", "--model", original]) if original else "--model with its original"
    also = [shlex.join(["phicli", "finetune", "--base", str(where)])] if method in TRAINED_ON else []
    trained = ", only finetune does, as --base" if also else ""
    raise BadInput(f"is quantized already ({method}), and quantize takes no such model{trained}", where=where,
                   hint=hint, also=also)


@cured
def judge_config(folder: Path) -> dict[str, Any]:
    """The config of a model that phicli can work with, whatever else lies beside it. Raises BadInput otherwise."""
    config = read_config(folder)
    if config.get("auto_map"):
        check_no_code(config, folder)
    check_config(config, folder / "config.json")
    return config


@cured
def read_headers(folder: Path) -> dict[str, Any]:
    """What the weights' headers say, by tensor, as `check_safetensors` gives it.

    Raises:
        BadInput: as `weight_files` and `check_safetensors`, or a tensor that stands in two files.
    """
    found: dict[str, Any] = {}
    for path in weight_files(folder):
        header = check_safetensors(path)
        if twice := found.keys() & header:
            raise BadInput(f"{min(twice)} stands in two files", where=path)
        found |= header
    return found


def check_no_code(config: dict[str, Any], folder: Path) -> None:
    """Refuse a model that only program code of its own could load; where transformers knows it, the code is left alone.

    Raises:
        BadInput: transformers does not know the architecture.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config["model_type"] not in CONFIG_MAPPING_NAMES:
        raise BadInput(f"'{config['model_type']}' is no architecture that transformers knows; the model brings code of "
                       "its own (auto_map), which phicli never runs, and there is no option for it",
                       where=folder / "config.json", hint="a model of an architecture that transformers knows")


@cured
def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises BadInput if it is missing or broken."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        packed = min(folder.glob("*.gguf"), default=None)
        lacks = ["config.json", *(name for name in ("tokenizer.json", "*.safetensors") if not any(folder.glob(name)))]
        raise BadInput(f"no {', '.join(lacks)}: not a Hugging Face model folder", where=folder,
                       hint=f"--model {shlex.quote(str(packed))}" if packed else A_MODEL) from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BadInput("no model_type in it", where=path)
    return config


@cured
def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: those the index names, else all.

    Raises:
        BadInput: none there, or one that the index names is not.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            strange = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]
        except (OSError, KeyError, TypeError, AttributeError) as e:
            raise BadInput(f"damaged index: {e}", where=index) from None
        if strange:
            raise BadInput(f"{strange[0]!r} is no name of a safetensors file beside it", where=index)
    else:
        names = sorted(p.name for p in folder.glob("*.safetensors"))
    if not names:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        more = "; pickled weights (.bin) are not opened" if pickles else ""
        raise BadInput(f"no weights in safetensors form{more}", where=folder,
                       hint=f"if you trust them: {_conversion(folder)}" if pickles else None)
    for name in names:
        if not (folder / name).is_file():
            raise BadInput(f"{name} is missing", where=folder)
    return [folder / name for name in names]


def _conversion(folder: Path) -> str:
    """The command that writes a model with pickled weights again, with safetensors."""
    old, new = json.dumps(str(folder)), json.dumps(f"{folder}-safetensors")
    code = (f"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"[X.from_pretrained({old}).save_pretrained({new}) for X in (M, T)]")
    return f"python -c {shlex.quote(code)}"


def find_base(root: Path) -> Path:
    """The quantized model under a root: AWQ if there is one, else the only one of another algorithm.

    Raises:
        Missing: there is none. UsageError: several, none of them AWQ. BadInput: it is damaged.
    """
    found = []
    for algorithm in QUANTIZE_ALGORITHMS:
        manifest = read_manifest(root / algorithm)
        if manifest is not None and manifest.step == "quantize":
            found.append(root / algorithm)
    if not found:
        raise Missing("no quantized model there", where=root, hint="phicli quantize", also=["--base FOLDER"])
    if len(found) > 1 and found[0].name != "awq":
        raise UsageError(f"several quantized models under {root}: {', '.join(f.name for f in found)}",
                         hint=f"--base {found[0]}")
    check_whole(found[0])
    return found[0]
