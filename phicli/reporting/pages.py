"""Pages made of a report's parts, in HTML that asks nobody for anything, or in Markdown."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from phicli.printable import printable

TEMPLATES = Path(__file__).parent / "templates"
MADE_BY = "phicli report"  # stands at the beginning of each page, so that a page is known again
_FILES = {"html": "report.html.jinja", "markdown": "report.md.jinja"}


def render(form: str, **parts: Any) -> str:
    """The page. Texts in `parts` are text: no markup, and no character that turns the order of others round."""
    page = _environment(form == "html").get_template(_FILES[form]).render(made_by=MADE_BY, **parts)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


@cache
def _environment(html: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=html, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown if html else _plain)


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else "" if value is None else value


def _plain(value: Any) -> Any:
    """A text in Markdown, every sign of which that could mean something there is escaped; lines become one."""
    if type(value) is not str:
        return "" if value is None else value
    text = re.sub(r"[\\`*_{}\[\]#!|~$@]|:(?=/)|\.(?=[^\d\s])", r"\\\g<0>", " ".join(printable(value).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")
