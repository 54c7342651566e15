"""Commands as phicli has them: help of its own, and an option given twice is an error, where the parser would take
the last one and say nothing."""

from collections import Counter
from typing import Any

import typer.core

from phicli.cli import help
from phicli.errors import UsageError


def checked(parser: Any) -> Any:
    """The parser, which from here on raises UsageError where an option with one value, or yes and no, comes twice."""
    parse = parser.parse_args

    def parse_args(args: list[str]) -> Any:
        parsed = parse(args=args)
        for option, count in Counter(parsed[2]).items():  # in the order of the command line
            if count > 1 and option.param_type_name == "option" and not option.multiple and (
                    not option.is_flag or option.secondary_opts):
                raise UsageError("given twice, and only one can hold", where="/".join(option.opts))
        return parsed

    parser.parse_args = parse_args
    return parser


class Command(typer.core.TyperCommand):
    """A command whose options hold one value each."""

    def make_parser(self, ctx: Any) -> Any:
        return checked(super().make_parser(ctx))

    def help_text(self, ctx: Any, whole: bool = False) -> str:
        return help.command_help(self, ctx, getattr(self.callback, "settings", {}), whole)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(self.help_text(ctx))


class Group(typer.core.TyperGroup):
    """Commands under one name; the options before theirs hold one value each."""

    def make_parser(self, ctx: Any) -> Any:
        return checked(super().make_parser(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help.group_help(self, ctx))
