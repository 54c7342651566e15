"""The help of commands: what is common in full, the rest by subject; two screens of 80 columns. Imports no rich."""

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from phicli.config.setting import Setting

WIDEST, NARROW = 110, 70  # columns of text; under the second one, texts stand below the options
BESIDE = 25  # column at which the text beside an option begins
GENERAL = "General"  # the panel of what every command takes
ALL = "--help-all"


def command_help(command: Any, ctx: Any, settings: Mapping[str, Setting], whole: bool) -> str:
    """The help of a command.

    settings: those among its options, by name. whole: with the texts of all options, and their variables.
    """
    about, examples = _parts(command.help or "")
    options = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    common, *others = _panels(options)
    lines = [_heading("Usage: ") + " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)]), ""]
    lines += _paragraphs(about) + [""]
    lines += [line for option in common[1] for line in _full(option, settings.get(option.name), whole)]
    if not whole:
        lines += ["", *(line for title, panel in others for line in _short(title, panel, settings))]
        lines += _wrapped(f"{ctx.command_path} {ALL} explains these too, with all variables.")
    for title, panel in others if whole else []:
        lines += ["", _heading(title), *(line for p in panel for line in _full(p, settings.get(p.name), True))]
    return _shown([*lines, *(["", *examples] if examples else [])])


def group_help(group: Any, ctx: Any) -> str:
    """The help of the program, or of a command that has commands of its own."""
    lines = [_heading("Usage: ") + " ".join([ctx.command_path, *group.collect_usage_pieces(ctx)]), ""]
    about, examples = _parts(group.help or "")
    lines += _paragraphs(about) + ["", _heading("Commands")]
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if not command.hidden:
            lines += _entry(f"  {name}", re.split(r"[:;.](?=\s|$)", command.help or "")[0], 12)
    lines += ["", *_short("Options", group.get_params(ctx), {})]
    return _shown([*lines, *(["", *examples] if examples else [])])


def _shown(lines: Sequence[str]) -> str:
    """What a terminal without Unicode has no letters for as "?", since click writes UTF-8 there."""
    encoding = sys.stdout.encoding or "utf-8"
    return "\n".join(lines).encode(encoding, "replace").decode(encoding)


def _parts(text: str) -> tuple[str, list[str]]:
    """What a docstring says, and its last paragraphs from "Examples:" on, line by line."""
    about, _, examples = inspect.cleandoc(text).partition("\n\nExamples:\n")
    return about, [_heading("Examples"), *examples.splitlines()] if examples else []


def _panels(options: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """The options by panel, those without one first, those of every command last."""
    found: dict[str, list[Any]] = {"": []}
    for option in options:
        panel = GENERAL if option.name == "help" else option.rich_help_panel
        found.setdefault(panel or "", []).append(option)
    general = found.pop(GENERAL, [])
    return [*found.items(), *([(GENERAL, general)] if general else [])]


def _full(option: Any, setting: Setting | None, variable: bool) -> list[str]:
    text = (option.help or "").replace("\\[", "[")
    if variable and setting and setting.key:
        text += f" [env: {setting.env}]"
    if option.param_type_name == "argument":
        return _entry(f"  {option.metavar or option.name.upper()}", text)
    shorts = ", ".join(name for name in option.opts if not name.startswith("--"))
    longs = "/".join([*(n for n in option.opts if n.startswith("--")), *option.secondary_opts])
    names = (f"{shorts}, " if shorts else "    ") + f"{longs} {_value(option, setting)}"
    return _entry(f"  {names}".rstrip(), text)


def _short(title: str, options: Sequence[Any], settings: Mapping[str, Setting]) -> list[str]:
    """A panel's options without their texts: name, values, default."""
    pieces = []
    for option in options:
        setting = settings.get(option.name)
        default = setting.shown_default if setting and setting.kind is not bool else None
        names = "/".join([*sorted(option.opts), *option.secondary_opts])
        pieces.append(" ".join(filter(None, [names, _value(option, setting), default and f"[{default}]"])))
    whole = [piece.replace(" ", "\0") for piece in pieces]  # a piece stays on one line
    first, *others = _wrapped("  ".join(whole), f"{title}: ", "  ")
    lines = [first.replace(title, _heading(title), 1), *others]
    return [line.replace("\0", " ") for line in lines]


def _value(option: Any, setting: Setting | None) -> str:
    """What stands for the value: the choices, else its kind; nothing for a switch."""
    if option.is_flag:
        return ""
    if setting and setting.choices:
        return "|".join(setting.choices)
    if setting:
        kinds = {str: "PATH" if setting.path else "TEXT", tuple: "PATH" if setting.path else "TEXT", int: "N"}
        return setting.metavar or kinds.get(setting.kind, "X")
    return option.metavar or ("PATH" if "Path" in str(option.type_descriptor) else "TEXT")


def _entry(names: str, text: str, beside: int = BESIDE) -> list[str]:
    """An option and its text beside it, or below it where one of both is wide."""
    column = beside if _width() >= NARROW or beside < BESIDE else 6
    lines = _wrapped(text, " " * column, " " * column)
    if len(names) + 2 > column or not lines:
        return [names, *lines]
    return [names + lines[0][len(names) :], *lines[1:]]


def _paragraphs(text: str) -> list[str]:
    return "\n\n".join("\n".join(_wrapped(part)) for part in text.split("\n\n")).splitlines()


def _wrapped(text: str, first: str = "", others: str = "", width: int | None = None) -> list[str]:
    return textwrap.wrap(text.replace("\n", " "), width or min(_width(), WIDEST), initial_indent=first,
                         subsequent_indent=others, break_long_words=False, break_on_hyphens=False)


def _width() -> int:
    return max(40, shutil.get_terminal_size().columns)


def _heading(text: str) -> str:
    return typer.style(text, bold=True)
