"""Workflows in Olive's own words, of a file in JSON or YAML, with nothing in them that runs code of a stranger's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import parse_json, read_text
from phicli.errors import BadInput, UsageError
from phicli.workflow.wording import worded

LONGEST, DEEPEST = 1 << 16, 50  # bytes of a file, which YAML reads slowly, the more so the deeper it is
KNOWN = ("input_model", "passes", "data_configs", "systems", "host", "target", "output_dir", "workflow_id", "engine")
OF_MODEL = ("type", "config", "model_path", "adapter_path", "task", "onnx_file_name", "model_attributes")
# Without a meaning here: passes run one after the other, each once, and nothing else is kept.
IDLE = re.compile(r"(cache|log|ort_log|ort_py_log)_.*|clean_.*|evaluate_input_model|no_artifacts|telemetry")
RUNS_CODE = re.compile(r".*script.*|.*custom_op.*|.*library.*|model_loader|hf_remote|hf_token|.*kernel.*|attn_impl.*|"
                       r"python_environment_path|prepend_to_path|dockerfile|packaging_config|enable_shared_cache")
MODELS = {"hfmodel": "model_path", "onnxmodel": "model_path"}
LOCAL = ("localsystem",)


@dataclass(frozen=True)
class PassSettings:
    """One pass: its name in Olive, and its settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workflow:
    """A model and the passes that it goes through.

    model: as a user calls it, None where that is left to the settings. onnx: whether it is an ONNX file.
    """

    passes: tuple[PassSettings, ...]
    model: str | None = None
    onnx: bool = False
    adapter: str | None = None
    output: str | None = None
    gpu: bool = False


def read_workflow(path: Path) -> Workflow:
    """The workflow in a file.

    Raises:
        BadInput: no such file, no JSON or YAML, what Olive does not take, or what phicli does not run: other
            machines, scripts, code of a model's. Its message has the key.
    """
    try:
        text = read_text(path, LONGEST)
    except FileNotFoundError:
        raise BadInput("no such workflow", where=path) from None
    document = parse_json(text, path) if path.suffix == ".json" else _parse_yaml(text, path)
    if not isinstance(document, dict):
        raise BadInput("holds no workflow: it is no object", where=path, hint="docs/workflows.md has one")
    given = {**document.pop("engine", {}), **document} if isinstance(document.get("engine", {}), dict) else document
    for key in given:
        if key not in KNOWN and not IDLE.fullmatch(str(key)):
            hint = {"search_strategy": "phicli search", "evaluators": "phicli evaluate", "evaluator": "phicli evaluate"}
            raise BadInput(f"'{str(key)[:60]}' is nothing that phicli runs", where=path, hint=hint.get(str(key)))
    _check_safe(given, path)
    model = _model_of(given.get("input_model"), path)
    with worded("Olive does not take this workflow", path):
        from olive.workflows.run.config import RunConfig

        parsed = RunConfig.model_validate({**given, "input_model": {"type": "HfModel", "model_path": "."}})
    passes = []
    for name, ways in parsed.passes.items():
        if len(ways) != 1:
            raise BadInput(f"the pass '{name}' has several ways", where=path, hint="phicli search")
        passes.append(PassSettings(ways[0].type, ways[0].config or {}))
    accelerators = getattr(getattr(parsed.engine.target, "config", None), "accelerators", None) or []
    gpu = any(str(one.device).lower().endswith("gpu") for one in accelerators)
    return Workflow(tuple(passes), output=given.get("output_dir"), gpu=gpu, **model)


def parse_pass(text: str) -> PassSettings:
    """"Rtn bits=4 sym=true" as a pass with settings. Raises UsageError: no name, or something else than KEY=VALUE."""
    name, *pairs = text.split() or [""]
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"'{pair[:60]}' is no KEY=VALUE", where="--pass", hint='--pass "Rtn bits=4 group_size=32"')
        settings[key] = _parse_yaml(value, Path("--pass"))
    if not re.fullmatch(r"\w+", name):
        raise UsageError(f"'{name[:60]}' is no name of a pass", where="--pass", hint='--pass "Rtn bits=4"')
    _check_safe(settings, Path("--pass"))
    return PassSettings(name, settings)


def files_of(passes: Sequence[PassSettings]) -> dict[str, Path]:
    """Files and folders of this machine that settings of passes name, by the place where they stand."""
    return {f"{one.name}.{key}": Path(value) for one in passes for key, value in _texts(one.settings)
            if "/" in value and Path(value).exists()}


def _model_of(given: Any, path: Path) -> dict[str, Any]:
    """Model, kind and adapter of the part `input_model`, which may be a path alone."""
    if given is None:
        return {}
    flat = {"model_path": given} if isinstance(given, str) else given
    if isinstance(flat, dict) and isinstance(flat.get("config"), dict):
        flat = {**flat, **flat["config"]}
    if not isinstance(flat, dict) or not isinstance(flat.get("model_path"), str):
        raise BadInput("names no model: input_model.model_path", where=path)
    if unknown := sorted(map(str, flat.keys() - set(OF_MODEL))):
        raise BadInput(f"'input_model.{unknown[0][:60]}' is nothing that phicli runs", where=path)
    kind = str(flat.get("type", "HfModel")).lower()
    if kind not in MODELS:
        raise BadInput(f"input_model is a {kind[:60]}, not one of HfModel, ONNXModel", where=path)
    file = Path(flat["model_path"], str(flat.get("onnx_file_name") or "."))
    return {"model": str(file) if kind == "onnxmodel" else flat["model_path"], "onnx": kind == "onnxmodel",
            "adapter": flat.get("adapter_path")}


def _check_safe(value: Any, path: Path) -> None:
    """Raise BadInput for what would run code that is not Olive's, or run on another machine."""
    if isinstance(value, dict):
        for key, inner in value.items():
            remote = key == "trust_remote_code" and inner not in (False, None)
            elsewhere = key == "type" and str(inner).lower().endswith("system") and str(inner).lower() not in LOCAL
            if remote or elsewhere or RUNS_CODE.fullmatch(str(key).lower()):
                raise BadInput(f"'{str(key)[:60]}' may run code of others, or elsewhere, which phicli does not",
                               where=path)
            _check_safe(inner, path)
    elif isinstance(value, list):
        for inner in value:
            _check_safe(inner, path)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested settings, with its place."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}".strip("."))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from _texts(inner, f"{key}.{at}".strip("."))
    elif hasattr(value, "model_dump"):
        yield from _texts(value.model_dump(), key)


def _parse_yaml(text: str, where: Path) -> Any:
    """A document without aliases, which a few letters make endless, and tags, which make objects.

    Raises:
        BadInput: no such document, a key twice, or nested too deeply.
    """
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*NAME) are not taken")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"nested more than {DEEPEST} deep")
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as e:
        raise BadInput(f"not readable as YAML: {' '.join(str(e).split())[:200]}", where=where) from None


def _loader() -> Any:
    import yaml

    class Strict(yaml.SafeLoader):
        """Of PyYAML's safe kinds, with each key once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found = super().construct_mapping(node, deep)
            if len(found) != len(node.value):
                raise ValueError(f"a key is there twice at line {node.start_mark.line + 1}")
            return found

    return Strict
