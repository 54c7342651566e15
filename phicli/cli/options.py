"""Option types that several commands share, and the one way to make an option from a setting."""

from pathlib import Path
from typing import Annotated, Any

import typer

from phicli.settings import find


def _plain(text: str) -> str:
    """The text with its brackets kept: Typer's help reads them as rich's markup."""
    return text.replace("[", r"\[")


def option(command: str, name: str, *flags: str) -> Any:
    """A Typer option whose help, choices and shown default are those of the setting."""
    setting = find(command, name)
    text = setting.help + (f" ({' | '.join(setting.choices)})" if setting.choices else "")
    default = setting.default
    shown = ",".join(default) if isinstance(default, list) else default
    if default is not None and "\n" not in str(default):
        text += f" [default: {shown}]"
    return typer.Option(*(flags or ("--" + name.replace("_", "-"),)), help=_plain(text), show_default=False)


Model = Annotated[str | None, option("", "model", "--model", "-m")]
Root = Annotated[str | None, option("", "root")]
Device = Annotated[str | None, option("", "device")]
Kernels = Annotated[str | None, option("", "kernels")]
Data = Annotated[str | None, option("", "data", "--data", "-d")]
EvalData = Annotated[str | None, option("", "eval_data")]
TextTemplate = Annotated[str | None, option("", "text_template")]
Seed = Annotated[int | None, option("", "seed")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help=_plain("Folder for the result [default: under the root]"))
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout")]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if the result is up to date")]
WorkspaceName = Annotated[str | None, option("azure", "workspace_name")]
ResourceGroup = Annotated[str | None, option("azure", "resource_group")]
Subscription = Annotated[str | None, option("azure", "subscription")]
