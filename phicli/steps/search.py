"""The search: trials of the lab's settings, within limits, the best of which is built at the end."""

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.locks import held
from phicli.artifacts.names import EVALUATION, ONNX_FOLDER, SEARCH
from phicli.config.measuring import SearchConfig
from phicli.config.setting import settings_of
from phicli.config.writing import typed_value
from phicli.errors import BadInput, UsageError
from phicli.hub.datasets import data_inputs, find_sources, held_out_sources
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress, keeping
from phicli.steps.choosing import Limits, Settings, best_of, front_of, grid_size, next_settings
from phicli.steps.quantize import plan_quantize
from phicli.steps.trials import AXES, TRIAL, Steps, Trials
from phicli.units import bytes_of, number, size

_FIGURES = ("size", "speed", "kl", "perplexity")


@subdued()
def search(config: SearchConfig, steps: Steps, progress: Progress = SILENT) -> dict[str, Any]:
    """Try settings of the lab, keep what each gave, and build the best model within the limits.

    After each trial the document is written; the same call goes on after those that are in it, whatever ended it.

    Args:
        steps: the settings that are not searched.

    Returns:
        what is written to `root`/search/search.json: {"goal", "limits", "axes", "trials": [{"settings", "size",
        "speed", "kl", "perplexity", "seconds", "outside", "front", "best"}, …], "path": of the best model, or None}.

    Raises:
        UsageError: a value that a setting cannot have, a limit without a figure. What the steps raise, but for
        settings that do not go together, which is what came of a trial.
    """
    axes, limits = axes_of(config), limits_of(config)
    adapter = bool({"lora_r", "learning_rate"} & axes.keys())
    goal = config.goal or ("perplexity" if adapter else "kl")
    target = config.root_folder / SEARCH
    with held(target.parent, progress):
        document = _begin(config, steps, adapter, target, progress)
        trials: list[dict[str, Any]] = document["trials"]
        runner = Trials(steps, target.parent, adapter, progress)
        most = min(config.trials, grid_size(axes))

        def write() -> None:
            best = best_of(trials, limits, goal)
            front = front_of(trials, limits, ("size", "speed", "perplexity" if adapter else "kl"))
            for at, trial in enumerate(trials):
                trial |= {"outside": _outside(trial, limits), "front": at in front, "best": at == best}
            document.update(goal=goal, limits=vars(limits), axes={k: list(v) for k, v in axes.items()},
                            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            stages.write_sealed(target, document)

        with progress.task("search", most, "trials") as task, keeping(lambda: _kept(trials)):
            trials[:] = [trial for trial in trials if _is_measured(trial, limits)]
            task.advance(len(trials))
            while len(trials) < most and (settings := next_settings(axes, trials, limits, goal, config.seed)):
                trials.append({"settings": settings, **runner.run(settings, limits)})
                write()
                task.advance(1)
                progress.note(_said(trials[-1]))
        best, place = best_of(trials, limits, goal), target.parent / "best"
        document["path"] = None if best is None else str(runner.build(trials[best]["settings"], place).folder)
        if best is None:  # what an earlier search left there is not within these limits
            _clear(place)
        write()
        _clear(target.parent / TRIAL)
    return document


def axes_of(config: SearchConfig) -> dict[str, tuple[Any, ...]]:
    """The settings to search, each with its values. Raises UsageError: a value that the setting cannot have."""
    found = {}
    for name, owner in AXES.items():
        if texts := getattr(config, name):
            found[name] = tuple(dict.fromkeys(typed_value(settings_of(owner)[name], text) for text in texts))
    if not found:
        raise UsageError("no setting to search", hint="--algorithm awq,rtn --group-size 32,128")
    return found


def limits_of(config: SearchConfig) -> Limits:
    """Raises UsageError: a size that is none."""
    try:
        size_limit = bytes_of(config.max_size) if config.max_size else None
    except ValueError as e:
        raise UsageError(str(e), where="--max-size") from None
    return Limits(size_limit, config.max_kl, config.max_perplexity, config.min_speed)


def _begin(config: SearchConfig, steps: Steps, adapter: bool, target: Path, progress: Progress) -> dict[str, Any]:
    """The document of an earlier run of the same search, or an empty one."""
    key = _key(steps, adapter, progress)
    have = stages.read_sealed(target, "remove it, and the search begins anew")
    if have is not None and "key" not in have:
        raise BadInput("the file there is no result of phicli search", where=target, hint="move it away")
    if have and have.get("key") == key and not config.force:
        return have
    if have:
        progress.note("the search begins anew: " + ("asked for" if config.force else
                                                    "model, data, settings or tools have changed since"))
    return {"key": key, "trials": [], "path": None}


def _key(steps: Steps, adapter: bool, progress: Progress) -> dict[str, Any]:
    """What the figures of all trials depend on."""
    sources = data_inputs(held_out_sources(steps.evaluate.eval_data, progress), "eval_data")
    if adapter:
        sources |= data_inputs(find_sources(steps.finetune.data, progress=progress))
    inputs = {name: stages.fingerprint(path) for name, path in sources.items()}
    known = {name: value for step in (steps.quantize, steps.optimize, steps.evaluate, *([steps.finetune] * adapter))
             for name, value in step.recorded().items() if name not in AXES}
    return {"inputs": {**inputs, **plan_quantize(steps.quantize, progress).inputs}, "settings": known,
            "adapter": adapter, "versions": stages.versions()}


def _clear(trial: Path) -> None:
    """Remove the model that a trial has left, and nothing else."""
    shutil.rmtree(trial / ONNX_FOLDER, ignore_errors=True)
    (trial / EVALUATION).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something is in it, or it was not made this time
        trial.rmdir()


def _is_measured(trial: Mapping[str, Any], limits: Limits) -> bool:
    """Whether nothing is missing that these limits ask for, as it does after a search with narrower ones."""
    return trial["size"] is None or bool(limits.exceeded(trial)) or trial["kl"] is not None


def _outside(trial: Mapping[str, Any], limits: Limits) -> str:
    return ", ".join(limits.exceeded(trial)) if trial["size"] is not None else trial["outside"]


def _said(trial: Mapping[str, Any]) -> str:
    figures = [f"{name} {size(value) if name == 'size' else number(value, 3)}" for name in _FIGURES
               if (value := trial[name]) is not None]
    outside = [f"outside: {trial['outside']}"] if trial["outside"] else []
    return f"{named(trial['settings'])}: {', '.join([*figures, *outside])}"


def named(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _kept(trials: Sequence[Any]) -> str:
    return f"{len(trials)} trials are kept, and the same command goes on after them" if trials else ""
