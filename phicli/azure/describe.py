"""What the stages' manifests say about a model, as the tags and properties of its version."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phicli.errors import BadInput
from phicli.stages import read_manifest

EVALUATION = "evaluation.json"  # in the root, beside the stages
MOST, LONGEST = 100, 256  # properties, and characters of a value


def describe(folder: Path, base_model: str | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """(properties, tags) of the model in a stage folder.

    Tags are what people look for: base_model, algorithm, adapters. Properties hold the figures of the manifest and
    of the evaluation. `base_model` holds where no manifest names it. Folders without a manifest give neither.

    Raises:
        BadInput: a damaged manifest.
    """
    folder = Path(folder).absolute()
    manifest = read_manifest(folder)
    if manifest is None:
        return {}, {}
    properties: dict[str, str] = {"phicli.step": manifest.step, "phicli.created": manifest.created}
    for part in ("settings", "quality", "versions", "inputs"):
        properties.update(_flat(f"phicli.{part}", getattr(manifest, part)))
    properties.update(_flat("evaluation", _read_evaluation(folder.parent / EVALUATION)))
    named = {"base_model": base_model} if base_model else {}
    tags = {**named, **_origin(folder.parent), **_adapters(folder)}
    return dict(list(properties.items())[:MOST]), tags


def _origin(root: Path) -> dict[str, str]:
    """Base model and algorithm, as the quantize step in the same root noted them."""
    for path in sorted(root.glob("*/phicli.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        made = read_manifest(path.parent)
        if made and made.step == "quantize":
            wanted = {"base_model": made.settings.get("model"), "algorithm": made.settings.get("algorithm")}
            return {k: str(v)[:LONGEST] for k, v in wanted.items() if v}
    return {}


def _adapters(folder: Path) -> dict[str, str]:
    names = ",".join(sorted(p.stem for p in (folder / "adapters").glob("*.onnx_adapter")))
    return {"adapters": names[:LONGEST]} if names else {}


def _read_evaluation(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise BadInput(f"not readable as JSON: {e}", where=path, hint="phicli evaluate") from None


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Leaves of nested settings as ("phicli.settings.bits", "4"); long lists and local folders are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{re.sub(r'[^A-Za-z0-9_-]+', '_', str(key))}", inner)
    elif isinstance(value, list):
        if value and len(value) <= 8 and all(isinstance(v, str) for v in value):
            yield name, ",".join(value)[:LONGEST]
    elif value is not None and not (isinstance(value, str) and Path(value).is_absolute()):
        yield name, (f"{value:.6g}" if isinstance(value, float) else str(value))[:LONGEST]
