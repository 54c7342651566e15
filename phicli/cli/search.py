"""`phicli search`: settings of the lab that keep to limits, and the best of them."""

from collections.abc import Sequence
from typing import Any

from phicli.artifacts.names import SEARCH
from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.layers import Settings
from phicli.config.measuring import SearchConfig
from phicli.config.steps import EvaluateConfig, FinetuneConfig, OptimizeConfig, QuantizeConfig
from phicli.errors import Refused

COLUMNS = ("settings", "size", "KL", "perplexity", "tokens/s", "remark")


def search(config: SearchConfig, flags: options.Flags, json: options.Json = False) -> Sequence[Next]:
    """Search settings that keep to limits: size, quality, speed. The best is built.

    After a stop the same command goes on. Other settings come from phicli.toml or the environment, as for the steps.

    Examples:
      phicli search --model tiny --max-size 7MB
      phicli search --algorithm awq,gptq --lora-r 8,64 --max-kl 0.05 --min-speed 20
    More: docs/search.md
    """
    from phicli.steps.search import named
    from phicli.steps.search import search as search_settings
    from phicli.steps.trials import AXES, Steps

    settings, common = Settings(), {name: value for name, value in flags.items() if name not in AXES}
    steps = Steps(settings.resolve(QuantizeConfig, common), settings.resolve(FinetuneConfig, common),
                  settings.resolve(OptimizeConfig, common), settings.resolve(EvaluateConfig, common))
    with console.task_log("search", config.root_folder) as progress:
        document = search_settings(config, steps, progress)
    if json:
        console.result_json(document)
    else:
        trials = sorted(document["trials"], key=lambda trial: (not trial["best"], not trial["front"]))
        console.result_table(COLUMNS, [(named(trial["settings"]), *_figures(trial), _remark(trial))
                                       for trial in trials])
    if document["path"] is None:
        raise Refused("no trial keeps to the limits", where=config.root_folder / SEARCH, hint="phicli report")
    return [("chat", "--path", document["path"]), ("report",)]


def _figures(trial: dict[str, Any]) -> list[str | None]:
    return [None if (value := trial[name]) is None else console.size(value) if name == "size"
            else console.number(value) for name in ("size", "kl", "perplexity", "speed")]


def _remark(trial: dict[str, Any]) -> str:
    if trial["outside"]:
        return f"outside: {trial['outside']}"
    return "best" if trial["best"] else "none beats it in every figure" if trial["front"] else ""
