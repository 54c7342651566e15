"""Which stages there are to measure under a root, and what each is compared with."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phicli.artifacts.names import ADAPTER_CONFIG, ADAPTER_SUFFIX, ADAPTERS, FINETUNED, GENAI_CONFIG, ONNX_FOLDER
from phicli.artifacts.reading import read_json
from phicli.artifacts.stages import MANIFEST
from phicli.config.steps import QUANTIZE_ALGORITHMS
from phicli.errors import BadInput, Missing, RemoteError
from phicli.hub.models import resolve_model
from phicli.progress import SILENT, Progress


@dataclass(frozen=True)
class Stage:
    """One thing to measure.

    name: as shown. folder: of the model. adapter: its name. adapter_path: of a PEFT folder or an ONNX adapter's file.
    onnx: run by genai rather than torch. twin: name of the torch stage that an ONNX stage is made from.
    missing: why it cannot be measured, with the command that makes it; None if it can.
    """

    name: str
    folder: Path
    adapter: str | None = None
    adapter_path: Path | None = None
    onnx: bool = False
    twin: str | None = None
    missing: str | None = None

    @property
    def bytes(self) -> int:
        """Size on disk of what has to be there to run it: weights, tokenizer and settings, and its own adapter."""
        files = [p for p in self.folder.rglob("*") if p.is_file() and p.name != MANIFEST
                 and p.parent != self.folder / ADAPTERS]
        if self.adapter_path is not None:
            inside = self.adapter_path.rglob("*") if self.adapter_path.is_dir() else [self.adapter_path]
            files += [p for p in inside if p.is_file() and p.name != MANIFEST]
        return sum(p.stat().st_size for p in files)


def find_stages(root: Path, model: str, algorithm: str, adapter: str | None,
                progress: Progress = SILENT) -> list[Stage]:
    """All stages in the order of the lab, those not made yet marked as missing.

    Args:
        model: what the user calls the original. algorithm: the quantization that the ONNX model is made from.
        adapter: name of the only adapter to measure; None for all.

    Raises:
        Missing: nothing was made under this root yet. BadInput: no such adapter; a damaged original.
    """
    trained = _names(root / FINETUNED, f"*/{ADAPTER_CONFIG}", lambda p: p.parent.name)
    exported = _names(root / ONNX_FOLDER / ADAPTERS, "*" + ADAPTER_SUFFIX, lambda p: p.name[: -len(ADAPTER_SUFFIX)])
    quantized = [name for name in QUANTIZE_ALGORITHMS if (root / name / "config.json").is_file()]
    if not (trained or quantized or (root / ONNX_FOLDER / GENAI_CONFIG).is_file()):
        raise Missing("nothing to evaluate here yet", where=root, hint="phicli quantize",
                      also=["all steps: phicli run"])
    adapters = sorted({*trained, *exported})
    if adapter is not None and adapter not in adapters:
        raise BadInput(f"no adapter '{adapter}'; there are: {', '.join(adapters) or 'none'}", where=root,
                       hint=f"phicli finetune --name {shlex.quote(adapter)}")
    adapters = [adapter] if adapter is not None else adapters
    if algorithm not in quantized and quantized:
        algorithm = quantized[0]
    original = _original(model, progress)
    found = [original]
    found += [Stage(name, root / name) for name in quantized] or [
        Stage(algorithm, root / algorithm, missing=f"not made: phicli quantize --algorithm {algorithm}")]
    found += [_trained(root, name, [original, *found[1:]], algorithm) for name in adapters if name in trained]
    if not any(stage.adapter for stage in found):
        found.append(Stage(f"{algorithm} + adapter", root / FINETUNED, missing="not made: phicli finetune"))
    return found + _optimized(root, algorithm, adapters, exported, found)


def _names(folder: Path, pattern: str, name_of: Callable[[Path], str]) -> list[str]:
    return sorted(name_of(path) for path in folder.glob(pattern) if not name_of(path).startswith("."))


def _original(model: str, progress: Progress) -> Stage:
    try:
        return Stage("original", resolve_model(model, progress))
    except (RemoteError, Missing) as e:
        return Stage("original", Path(model), missing=e.message)


def _trained(root: Path, name: str, bases: Sequence[Stage], algorithm: str) -> Stage:
    """An adapter on the model that it was trained on."""
    folder = root / FINETUNED / name
    try:
        trained_on = read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadInput(f"damaged: {e!r}", where=folder / ADAPTER_CONFIG,
                       hint=f"phicli finetune --name {shlex.quote(name)}") from None
    by_folder = {base.folder.name: base for base in bases[1:]}
    base = by_folder.get(Path(str(trained_on)).name)
    if base is None and str(trained_on) in (str(bases[0].folder), bases[0].folder.name):
        base = bases[0]
    base = base or by_folder.get(algorithm) or bases[0]
    return Stage(f"{base.name} + {name}", base.folder, name, folder, missing=base.missing)


def _optimized(root: Path, algorithm: str, adapters: Sequence[str], exported: Sequence[str],
               torch_stages: Sequence[Stage]) -> list[Stage]:
    folder = root / ONNX_FOLDER
    made = (folder / GENAI_CONFIG).is_file()
    with_adapter = {stage.adapter: stage.name for stage in torch_stages if stage.adapter and not stage.missing}
    base = next((s.name for s in torch_stages if s.name == algorithm and not s.missing), None)
    found = [Stage("onnx", folder, onnx=True, twin=base, missing=None if made else "not made: phicli optimize")]
    for name in adapters or ["adapter"]:
        there = made and name in exported
        found.append(Stage(f"onnx + {name}", folder, name, folder / ADAPTERS / (name + ADAPTER_SUFFIX), True,
                           with_adapter.get(name), None if there else "not made: phicli optimize"))
    return found
