"""What the stages' manifests say about a model, as the tags and properties of its version."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phicli.artifacts.names import ADAPTER_SUFFIX, ADAPTERS, EVALUATION
from phicli.artifacts.reading import read_json
from phicli.artifacts.stages import MANIFEST, check_whole, fingerprint, read_manifest
from phicli.errors import BadInput

FIGURES = ("perplexity", "kl", "top1", "kl_torch", "top1_torch", "bytes")  # of a stage
MOST, LONGEST = 100, 256  # properties, and characters of a value


def describe(folder: Path, base_model: str | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """(properties, tags) of the model in a stage folder.

    Tags are what people look for: base_model, algorithm, adapters. Properties hold the figures of the manifest and
    of the evaluation. `base_model` holds where no manifest names it. Folders without a manifest give neither.

    Raises:
        BadInput: a damaged manifest, or a file that is not as the step wrote it.
    """
    folder = Path(folder).absolute()
    manifest = read_manifest(folder)
    if manifest is None:
        return {}, {}
    check_whole(folder)
    properties: dict[str, str] = {"phicli.step": manifest.step, "phicli.created": manifest.created}
    for part in ("settings", "quality", "versions", "inputs"):
        properties.update(_flat(f"phicli.{part}", getattr(manifest, part)))
    evaluation = _read_evaluation(folder.parent / EVALUATION)
    properties.update(_flat("evaluation", {k: evaluation.get(k) for k in ("rows", "tokens", "created")}))
    for stage in evaluation.get("stages", []):
        properties.update(_flat(f"evaluation.{_word(stage['stage'])}", {k: stage.get(k) for k in FIGURES}))
    base_model = base_model or evaluation.get("model")
    tags = {"base_model": base_model[:LONGEST]} if base_model else {}
    tags |= _algorithm(folder.parent, manifest.inputs.get("base")) | _adapters(folder)
    return dict(list(properties.items())[:MOST]), tags


def _algorithm(root: Path, base: str | None) -> dict[str, str]:
    """How the stage that this model was made from was quantized; `base` is that stage's fingerprint."""
    for path in sorted(root.glob(f"*/{MANIFEST}")):
        made = read_manifest(path.parent)
        if made and made.step == "quantize" and fingerprint(path.parent) == base:
            return {"algorithm": str(made.settings.get("algorithm"))}
    return {}


def _adapters(folder: Path) -> dict[str, str]:
    names = ",".join(sorted(p.stem for p in (folder / ADAPTERS).glob(f"*{ADAPTER_SUFFIX}")))
    return {"adapters": names[:LONGEST]} if names else {}


def _read_evaluation(path: Path) -> Any:
    try:
        document = read_json(path)
        if not all("stage" in stage for stage in document.get("stages", [])):
            raise ValueError("a stage without a name")
        return document
    except FileNotFoundError:
        return {}
    except (BadInput, ValueError, AttributeError, TypeError) as e:
        raise BadInput(f"damaged: {getattr(e, 'message', e)}", where=path, hint="phicli evaluate") from None


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Leaves of nested settings as ("phicli.settings.bits", "4"); long lists and local folders are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{_word(key)}", inner)
    elif isinstance(value, list):
        if value and len(value) <= 8 and all(isinstance(v, str) for v in value):
            yield name, ",".join(value)[:LONGEST]
    elif value is not None and not (isinstance(value, str) and Path(value).is_absolute()):
        yield name, (f"{value:.6g}" if isinstance(value, float) else str(value))[:LONGEST]


def _word(text: object) -> str:
    """A text as a part of a property's name: "ONNX + travel" as "ONNX_travel"."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(text))
