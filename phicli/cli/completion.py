"""What a shell can complete: choices, and the models, adapters and steps there are. Imports nothing heavy."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from phicli.config.setting import Setting
from phicli.errors import PhicliError

Completion = Callable[[typer.Context], Sequence[str]]


def completion_of(name: str, setting: Setting) -> Completion | None:
    """What completes the value of a setting's option; None leaves it to the shell, which knows files."""
    if setting.choices:
        return lambda ctx: setting.choices
    return {"model": models, "adapter": adapters, "adapters": adapters, "from_adapter": adapters,
            "merge": adapters}.get(name)


def models(ctx: typer.Context) -> list[str]:
    """The built-in model, and those that the folder models/ has stages of."""
    from phicli.hub.roots import models_here

    return ["tiny", *models_here()]


def adapters(ctx: typer.Context) -> list[str]:
    """Trained ones and those in the ONNX model, under the root that is meant so far."""
    from phicli.artifacts.names import ADAPTER_SUFFIX, ADAPTERS, FINETUNED, ONNX_FOLDER

    root = _root(ctx)
    trained = [path.parent.name for path in root.glob(f"{FINETUNED}/[!.]*/phicli.json")]
    return sorted({*trained, *(path.stem for path in (root / ONNX_FOLDER / ADAPTERS).glob(f"*{ADAPTER_SUFFIX}"))})


def steps(ctx: typer.Context) -> Sequence[str]:
    """Those of `phicli run`."""
    from phicli.steps.lab import STEPS

    return STEPS


def _root(ctx: typer.Context) -> Path:
    from phicli.config.bases import OfModel
    from phicli.config.layers import Settings

    with contextlib.suppress(PhicliError):
        return Settings().resolve(OfModel, {name: ctx.params.get(name) for name in ("model", "root")}).root_folder
    return Path()
