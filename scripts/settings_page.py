"""Writes docs/settings.md, the reference of all settings, from the settings classes: python scripts/settings_page.py"""

import inspect
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from phicli.cli.main import COMMANDS, GROUPS
from phicli.config.layers import SETTINGS
from phicli.config.setting import Setting, StepConfig, settings_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
INTRODUCTION = """# Settings

Written by `scripts/settings_page.py` from the classes in `phicli/config/steps.py` and `phicli/config/shared.py`; a test
fails when it is out of date.

A flag wins over the environment, that over `phicli.toml`, that over the default; `phicli config` shows each value and
where it comes from, [housekeeping.md](housekeeping.md) where the file is found. A setting without a flag is set in the
other two, one without a key for a single run only. In
`phicli.toml` the key `quantize.samples` is `samples` under `[quantize]`, and lists are arrays; in the environment and
in flags lists have commas (`chat.stop` is one text there, and so is the name of a file that has a comma in it). In
Python ([python.md](python.md)) a setting is a keyword, spelt like its key, of the function that is named after the
command; neither the environment nor `phicli.toml` is read there.
"""
COLUMNS = ("flag", "key", "environment", "type", "default", "meaning", "commands")


def page() -> str:
    """The whole page, in Markdown."""
    uses = commands_of()
    sections = {"Of several commands": [s for s in SETTINGS.values() if "." not in s.key]}
    for setting in SETTINGS.values():
        if "." in setting.key:
            sections.setdefault(f"`[{setting.key.partition('.')[0]}]`", []).append(setting)
    parts = [INTRODUCTION]
    for title, settings in sections.items():
        parts.append(_table(title, [_row(setting, uses.get(setting.key, ({}, []))) for setting in settings]))
    parts.append(_table("For one run only, as a flag or an argument", list(_once())))
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, list[type[StepConfig]]]]:
    """Each command with the settings classes that it takes, such as ("azure show", [WorkspaceConfig])."""
    for name in COMMANDS:
        module = import_module(f"phicli.cli.{name}")
        functions = {f"{name} {c.callback.__name__}": inspect.unwrap(c.callback) for c in module.app.registered_commands
                     } if name in GROUPS else {name: getattr(module, name)}
        for command, function in functions.items():
            hints = typing.get_type_hints(function)
            yield command, [h for h in hints.values() if isinstance(h, type) and issubclass(h, StepConfig)]


def commands_of() -> dict[str, tuple[dict[str, Setting], list[str]]]:
    """Key of a setting -> the option by its name, and the commands that take it."""
    found: dict[str, tuple[dict[str, Setting], list[str]]] = {}
    for command, configs in commands():
        for config in configs:
            for name, setting in settings_of(config).items():
                if setting.key:
                    options, users = found.setdefault(setting.key, ({}, []))
                    if not setting.argument:
                        options[name] = setting
                    users.append(command)
    return found


def _once() -> Iterator[tuple[str, ...]]:
    """Rows of the settings that have no key: one for all commands in which they are the same."""
    found: dict[tuple[str, Setting], list[str]] = {}
    for command, configs in commands():
        for config in configs:
            for name, setting in settings_of(config).items():
                if not setting.key:
                    found.setdefault((name, setting), []).append(command)
    for (name, setting), users in found.items():
        yield _row(setting, ({} if setting.argument else {name: setting}, users))


def _row(setting: Setting, use: tuple[dict[str, Setting], list[str]]) -> tuple[str, ...]:
    options, users = use
    flags = [flag for name, option in options.items() for flag in option.flags or ("--" + name.replace("_", "-"),)]
    spelt = ", ".join(f"`{part}`" for flag in flags for part in flag.split("/"))
    key, variable = (f"`{setting.key}`", f"`{setting.env}`") if setting.key else ("", "")
    shown = setting.shown_default if setting.kind is not bool or not setting.key else setting.default
    default = f"`{shown}`".lower() if isinstance(shown, bool) else f"`{shown}`" if shown is not None else ""
    return spelt, key, variable, _kind(setting), default, setting.help, ", ".join(users)


def _kind(setting: Setting) -> str:
    """Type and range, or the choices."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kind = {str: "text", tuple: "list of texts", int: "whole number", float: "number", bool: "true or false"}
    limits = [(setting.minimum, "from {}"), (setting.above, "above {}"), (setting.maximum, "to {}"),
              (setting.below, "below {}")]
    return " ".join([kind[setting.kind], *(words.format(limit) for limit, words in limits if limit is not None)])


def _table(title: str, rows: list[tuple[str, ...]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"## {title}\n\n{body}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
