"""Stages that a user names: one under the root, any folder, id or GGUF file, an adapter on it."""

from collections.abc import Sequence
from pathlib import Path

from phicli.artifacts.names import ADAPTER_CONFIG, ADAPTER_SUFFIX, ADAPTERS, FINETUNED, GENAI_CONFIG
from phicli.artifacts.reading import read_json
from phicli.errors import BadInput
from phicli.evaluation.stages import Stage
from phicli.hub.models import resolve_model
from phicli.progress import SILENT, Progress


def name_stages(names: Sequence[str], found: Sequence[Stage], root: Path, progress: Progress = SILENT) -> list[Stage]:
    """The stages of these names, in their order.

    Args:
        names: each a stage of `found` ("awq", "onnx + travel"), or FOLDER, or FOLDER+ADAPTER: a Hugging Face or ONNX
            folder, an adapter of PEFT's (on the model that it names), an id or GGUF file; and the adapter's folder or
            its name, under `root` or in the ONNX folder.

    Raises:
        BadInput: one cannot be measured, or stands there twice. As `resolve_model`.
    """
    known = {_plain(stage.name): stage for stage in found}
    stages: list[Stage] = []
    for name in names:
        stage = known.get(_plain(name)) or _of_reference(name, root, progress)
        if stage.missing:
            raise BadInput(stage.missing, where=stage.name)
        if any(stage.name == other.name for other in stages):
            raise BadInput("stands there twice", where=f"--stage {name}")
        stages.append(stage)
    return stages


def _plain(name: str) -> str:
    return name.replace(" ", "")


def _of_reference(name: str, root: Path, progress: Progress) -> Stage:
    reference, _, adapter = (name, "", "") if Path(name).exists() else name.partition("+")
    folder = Path(reference.strip())
    adapter = adapter.strip()
    if (folder / GENAI_CONFIG).is_file():
        file = folder / ADAPTERS / (adapter + ADAPTER_SUFFIX)
        if adapter and not file.is_file():
            raise BadInput(f"the model has no adapter '{adapter}'", where=folder, hint=f"phicli show {folder}")
        return Stage(name, folder, adapter or None, file if adapter else None, onnx=True)
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        return Stage(name, resolve_model(str(base), progress), folder.name, folder)
    if not adapter:
        return Stage(name, resolve_model(reference, progress))
    place = root / FINETUNED / adapter if (root / FINETUNED / adapter).is_dir() else Path(adapter)
    if not (place / ADAPTER_CONFIG).is_file():
        raise BadInput(f"no adapter '{adapter}'", where=name, hint="FOLDER+ADAPTER: a name under ROOT/ft, or a folder")
    return Stage(name, resolve_model(reference.strip(), progress), place.name, place)
