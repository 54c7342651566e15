"""Settings: what there is to set, and where each value comes from (flag, environment, phicli.toml, default)."""

import difflib
import math
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phicli.artifacts.reading import read_text
from phicli.errors import BadInput, UsageError
from phicli.roots import check_root

CONFIG_NAME = "phicli.toml"
LONGEST_FILE, LONGEST_KEY = 1 << 16, 1000  # bytes, characters
LARGEST = 2**31 - 1  # of whole numbers; libraries keep some of them in 32 bits


@dataclass(frozen=True)
class Setting:
    """One setting.

    key: `name` when every command shares it, `command.name` when one command owns it.
    kind: bool, int, float, str or list (a list of strings; comma-separated in the environment).
    path: a file or folder, or may be one: `~` at its beginning is the home folder, wherever it was given.
    """

    key: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    path: bool = False

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def env(self) -> str:
        return "PHICLI_" + self.key.upper().replace(".", "_")


@dataclass(frozen=True)
class Value:
    """A setting's value and its origin: "flag", "PHICLI_…", "phicli.toml" or "default"."""

    value: Any
    origin: str


DEFAULT_TEMPLATE = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"
QUANTIZE_ALGORITHMS = ("awq", "gptq", "rtn", "kquant", "quarot")
FINETUNE_METHODS = ("lora", "dora", "loftq", "loha", "lokr")

_TABLE = [
    Setting("model", str, "microsoft/Phi-3.5-mini-instruct",
            "Model: Hugging Face id, folder, or 'tiny' (built in)", path=True),
    Setting("root", str, None, "Folder of all stages [default: models/<short name of the model>]",
            path=True),
    Setting("device", str, "auto", "Where to compute", choices=("auto", "cuda", "cpu")),
    Setting("kernels", str, "auto", "Whose products run on a CPU; auto: the faster ones",
            choices=("auto", "phicli", "onnxruntime")),
    Setting("data", str, "data/data_sample_travel.jsonl", "Training rows, JSONL (.gz too)", path=True),
    Setting("eval_data", str, "data/data_eval_travel.jsonl", "Held-out rows, JSONL", path=True),
    Setting("text_template", str, DEFAULT_TEMPLATE, "How a row becomes text; {field} takes a row's field"),
    Setting("adapter", str, None, "Adapter's name"),
    Setting("seed", int, 0, "Seed of everything random", minimum=0),

    Setting("inspect.rows", int, 3, "Rows to show", minimum=0),
    Setting("inspect.max_tokens", int, 1024, "Length limit of a row in tokens", minimum=1),

    Setting("quantize.algorithm", str, "awq", "Quantization algorithm", choices=QUANTIZE_ALGORITHMS),
    Setting("quantize.implementation", str, "phicli", "Whose AWQ runs", choices=("phicli", "autoawq")),
    Setting("quantize.bits", int, 4, "Bits of a weight (AWQ: 4)", minimum=2),
    Setting("quantize.group_size", int, 128, "Inputs that share one scale", minimum=16),
    Setting("quantize.symmetric", bool, False, "Zero point fixed in the middle"),
    Setting("quantize.skip", list, [], "Parts of module names to leave in float"),
    Setting("quantize.calibration", str, None, "Calibration file, JSONL or plain text [default: built-in text]",
            path=True),
    Setting("quantize.samples", int, 128, "Calibration sequences", minimum=1),
    Setting("quantize.seq_len", int, 512, "Tokens of a calibration sequence", minimum=8),
    Setting("quantize.rounding", str, "gptq", "Rounding: to nearest, or with GPTQ's error feedback",
            choices=("gptq", "nearest")),
    Setting("quantize.distill", int, 0, "Steps of training integers and scales on the original's output afterwards",
            minimum=0),
    Setting("quantize.plan", str, None, "File of AWQ scales and ranges, saved by --save-plan, to take; no search",
            path=True),
    Setting("quantize.save_plan", str, None, "File to save AWQ's scales and ranges to", path=True),

    Setting("finetune.name", str, "travel", "Name of the adapter"),
    Setting("finetune.base", str, None, "Model to train on, folder or id [default: the quantized one under the root]",
            path=True),
    Setting("finetune.method", str, "lora", "Adapter method", choices=FINETUNE_METHODS),
    Setting("finetune.max_steps", int, 100, "Optimizer steps", minimum=1),
    Setting("finetune.batch_size", int, 8, "Rows of an optimizer step", minimum=1),
    Setting("finetune.learning_rate", float, None,
            "Peak learning rate [default: from the model's width]", minimum=0),
    Setting("finetune.schedule", str, "linear", "How the learning rate falls after the warm-up",
            choices=("linear", "cosine", "constant")),
    Setting("finetune.lora_r", int, 64, "Rank", minimum=1),
    Setting("finetune.lora_alpha", float, None, "Scaling numerator [default: twice the rank]", minimum=0),
    Setting("finetune.lora_dropout", float, 0.05, "Dropout before the adapter", minimum=0),
    Setting("finetune.target_modules", list, ["all-linear"], "Linear layers to adapt, by name"),
    Setting("finetune.seq_len", int, 1024, "Longest row in tokens; the rest is cut", minimum=8),
    Setting("finetune.mask_prompt", bool, True, "Loss on the response only"),
    Setting("finetune.eval_split", float, 0.1, "Share of the rows held out to measure", minimum=0),
    Setting("finetune.checkpoint_steps", int, 20, "Steps between checkpoints", minimum=1),

    Setting("optimize.base", str, None, "Model to build from, folder or id [default: the quantized one]", path=True),
    Setting("optimize.device", str, "auto", "Where the model will run: auto, cpu, cuda, dml or webgpu"),
    Setting("optimize.activations", str, "int8", "Least precision of activations in products with int4 weights (cpu, "
            "webgpu)", choices=("int8", "fp32")),
    Setting("optimize.head", str, "int8", "Weights of the output projection", choices=("int4", "int8", "float")),
    Setting("optimize.adapter_layout", str, None, "How adapters enter the graph: as its inputs, resident in it, or "
            "in it with kernels of our own [default: fused on cuda and cpu, else inputs]",
            choices=("inputs", "resident", "fused")),
    Setting("optimize.adapter_weights", str, "float", "Of adapters in the graph (int8: resident, or fused on a "
            "CPU)", choices=("float", "int8")),
    Setting("optimize.cuda_graph", bool, None, "Let genai capture a CUDA graph [default: on cuda, where "
            "adapters are in the graph]"),

    Setting("chat.system", str, None, "System message"),
    Setting("chat.max_new_tokens", int, 256, "Longest answer in tokens", minimum=1),
    Setting("chat.temperature", float, 0.0, "Sampling temperature; 0 takes the likeliest token", minimum=0),
    Setting("chat.top_p", float, 0.95, "Sample from the likeliest tokens that make up this probability", minimum=0),
    Setting("chat.top_k", int, 50, "Sample from this many likeliest tokens", minimum=1),

    Setting("evaluate.rows", int, None, "Take only that many rows [default: all]", minimum=1),
    Setting("evaluate.seq_len", int, 1024, "Longest row in tokens; the rest is cut", minimum=8),

    Setting("upload.name", str, "ft-for-travel", "Name of the model in Azure ML"),
    Setting("upload.version", str, None, "Version of the model [default: the next free number]"),
    Setting("upload.description", str, None, "Description of the model"),

    Setting("azure.subscription", str, None, "Azure subscription id"),
    Setting("azure.resource_group", str, None, "Azure resource group"),
    Setting("azure.workspace_name", str, None, "Azure ML workspace"),
    Setting("azure.cache", str, None, "Folder of downloaded models [default: in the user's cache folder]",
            path=True),
    Setting("azure.connections", int, 8, "Transfers at once", minimum=1),
    Setting("azure.retries", int, 3, "Tries after a failed request", minimum=0),
    Setting("azure.timeout", float, 60.0, "Seconds to wait for an answer", minimum=0.1),
]

SETTINGS: dict[str, Setting] = {s.key: s for s in _TABLE}


def find(command: str, name: str) -> Setting:
    """The setting that `name` means inside `command`: its own, else the shared one."""
    return SETTINGS.get(f"{command}.{name}") or SETTINGS[name]


class Settings:
    """The three layers under the flags: environment, settings file, defaults.

    Args:
        path: the settings file; None takes $PHICLI_CONFIG, else `phicli.toml` of the working folder if it is there.

    Raises:
        BadInput: the file cannot be read, is no TOML, or has an unknown key or a value of another type; a variable
            PHICLI_… is no setting's.
    """

    def __init__(self, path: Path | None = None):
        named = path or os.environ.get("PHICLI_CONFIG")
        _check_environment()
        self.path = Path(expand(str(named))) if named else Path(CONFIG_NAME) if Path(CONFIG_NAME).is_file() else None
        self.file = _read_file(self.path) if self.path else {}

    def get(self, setting: Setting, flag: Any = None) -> Value:
        """The value that holds, and its origin.

        Raises:
            UsageError: a flag out of range. BadInput: the same from the environment or the file.
        """
        if flag is not None:
            if setting.kind is list:  # given several times, or with commas
                flag = [part for item in flag for part in _from_text(setting, item)]
            return Value(_checked(setting, flag, UsageError, "--" + setting.name.replace("_", "-")), "flag")
        if setting.env in os.environ:
            value = _from_text(setting, os.environ[setting.env])
            return Value(_checked(setting, value, BadInput, setting.env), setting.env)
        if setting.key in self.file:
            value = self.file[setting.key]
            return Value(_checked(setting, value, BadInput, f"{self.path}: {setting.key}"), str(self.path))
        return Value(setting.default, "default")

    def resolve(self, command: str, flags: dict[str, Any]) -> SimpleNamespace:
        """All of a command's flags, each filled from the layer below where it was not given.

        Raises:
            UsageError: the default root holds another model's stages. What `get` raises.
        """
        out = SimpleNamespace()
        for name, flag in flags.items():
            setting = SETTINGS.get(f"{command}.{name}") or SETTINGS.get(name)
            flag = Path(expand(str(flag))) if isinstance(flag, Path) else flag
            setattr(out, name, self.get(setting, flag).value if setting else flag)
        if hasattr(out, "root") and hasattr(out, "model") and out.root is None:
            out.root = default_root(out.model)
            check_root(out.root, out.model)
        return out


def expand(path: str) -> str:
    """The path with `~` and `~name` at its beginning as home folders. Raises BadInput: nobody has that name."""
    found = os.path.expanduser(path)  # noqa: PTH111 (a Path would lose "./" and "azureml://")
    if found.startswith("~"):
        raise BadInput("no such home folder", where=path, hint=f"a folder of that name: ./{path}")
    return found


def _check_environment() -> None:
    known = {"PHICLI_CONFIG", *(setting.env for setting in SETTINGS.values())}
    for name in sorted(os.environ):
        if name.startswith("PHICLI_") and name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            raise BadInput("unknown setting in the environment", where=name,
                           hint=f"did you mean {near[0]}?" if near else "see: phicli config")


def default_root(model: str) -> str:
    """`models/phi` for a Phi of Microsoft's, `models/<short name>` for any other model."""
    if model.startswith("azureml:"):  # azureml://registries/R/models/NAME/versions/4, or azureml:NAME:4
        model = re.sub(r".*/models/([^/]+)/.*|azureml:([^:@]+).*", r"\1\2", model)
    name = model.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
    if name in (".", ".."):
        name = Path(model).resolve().name.lower()
    return "models/phi" if model.lower().startswith("microsoft/phi") else f"models/{name or 'model'}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, LONGEST_FILE)
        for number, line in enumerate(text.splitlines(), 1):  # tomllib takes a minute for a key of 30,000 parts
            key = line if line.lstrip().startswith("[") else line.partition("=")[0] if "=" in line else ""
            if len(key) > LONGEST_KEY:
                raise BadInput(f"a key of more than {LONGEST_KEY} characters", where=f"{path}:{number}")
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise BadInput("no such settings file", where=path) from None
    except (ValueError, RecursionError) as e:  # ValueError itself: a number of thousands of digits
        raise BadInput(f"not readable as TOML: {str(e)[:200]}", where=path) from None
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    for key, value in flat.items():
        if key not in SETTINGS:
            near = difflib.get_close_matches(key[:80], SETTINGS, 1, 0.5)
            raise BadInput(f"unknown setting '{key[:80]}'", where=path,
                           hint=f"did you mean '{near[0]}'?" if near else "see: phicli config")
        whole = SETTINGS[key].kind is float and isinstance(value, int) and abs(value) <= LARGEST
        flat[key] = float(value) if whole else value
    return flat


def _from_text(setting: Setting, text: str) -> Any:
    if setting.kind is bool:
        lowered = text.lower()
        if lowered not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise BadInput(f"'{text}' is neither true nor false", where=setting.env)
        return lowered in ("1", "true", "yes", "on")
    if setting.kind is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return setting.kind(text)
    except ValueError:
        raise BadInput(f"'{text[:80]}' is no {setting.kind.__name__}", where=setting.env) from None


def _checked(setting: Setting, value: Any, error: type[UsageError] | type[BadInput], where: str) -> Any:
    right_type = isinstance(value, setting.kind) and (setting.kind is bool or not isinstance(value, bool))
    if not right_type:
        raise error(f"needs {setting.kind.__name__}, not {_short(value)}", where=where)
    if setting.kind is float and not math.isfinite(value):
        raise error(f"must be a finite number, not {value}", where=where)
    if setting.kind is int and abs(value) > LARGEST:
        raise error(f"must be at most {LARGEST}", where=where)
    if setting.choices and value not in setting.choices:
        near = difflib.get_close_matches(value, setting.choices, 1)
        raise error(f"'{value}' is not one of {', '.join(setting.choices)}", where=where,
                    hint=f"did you mean '{near[0]}'?" if near else None)
    if setting.minimum is not None and not value >= setting.minimum:
        raise error(f"must be at least {setting.minimum}, not {value}", where=where)
    return expand(value) if setting.path else value


def _short(value: Any) -> str:
    """A value as a message can show it: not all of a long one, and only what a deep one is."""
    return repr(value)[:80] if isinstance(value, str | float | bool) else type(value).__name__
