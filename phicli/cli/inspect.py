"""`phicli inspect`: what is in a file of rows, and what is wrong with it."""

from typing import Any

from phicli.cli import console, options
from phicli.config.steps import InspectConfig
from phicli.errors import BadInput

PREVIEW = 160  # characters shown of a field


def inspect(config: InspectConfig, json: options.Json = False) -> None:
    """Show the first rows, figures about fields and tokens, and everything that may be wrong with the data."""
    from phicli.steps.inspect import inspect_file

    with console.task_log("inspect", config.root_folder) as progress:
        report = inspect_file(config, progress)
    if json:
        console.result_json(report)
    else:
        _show(report)
    if not report["rows"]:
        worst = max((w for w in report["warnings"] if w["bad"]), key=lambda w: w["count"])
        raise BadInput(f"no row can be used: {_plain(worst['message'])}", where=report["file"],
                       hint=_plain(worst["suggestion"]))


def _show(report: dict[str, Any]) -> None:
    fields = [name for name in report["first_rows"][0] if name != "line"] if report["first_rows"] else []
    if fields:
        first = [[row["line"], *(_plain(row[name], PREVIEW) for name in fields)] for row in report["first_rows"]]
        console.result_table(["line", *map(_plain, fields)], first, title="First rows")
    measured = [*report["fields"].items(), ("whole row", {**report, "empty": None})]
    figures = [(_plain(name), f["rows"], f["empty"], what, *(f"{value:g}" for value in list(f[what].values())[:4]))
               for name, f in measured for what in ("characters", "tokens") if f.get(what)]
    console.result_table(["field", "rows", "empty", "of", "min", "mean", "p95", "max"], figures, title="Fields")
    findings = [(w["code"], w["count"], _lines(w), _plain(w["message"]), _plain(w["suggestion"]))
                for w in report["warnings"]]
    if findings:
        console.result_table(["finding", "rows", "lines", "what", "what helps"], findings, title="Findings")
    if "fix" in report:
        done = report["fix"]
        both = [("changed", code, n) for code, n in done["changed"].items()]
        both += [("left out", code, n) for code, n in done["dropped"].items()]
        console.result_table(["clean copy", "for", "rows"], [*both, ("written", done["output"], done["rows"])])
    console.result(_summary(report))


def _summary(report: dict[str, Any]) -> str:
    tokens = report["tokens"]
    parts = [f"{report['rows']} rows", f"{report['bad_rows']} that cannot be used",
             f"{report['duplicate_rows']} duplicates"]
    if tokens:
        parts.append(f"{tokens['total']} tokens, {tokens['over_limit']} rows over {tokens['limit']}")
    return ", ".join(parts) + ("" if report["warnings"] else ". No findings.")


def _lines(warning: dict[str, Any]) -> str:
    more = " …" if warning["lines"] and warning["count"] > len(warning["lines"]) else ""
    return ", ".join(map(str, warning["lines"])) + more


def _plain(text: str, limit: int = 1000) -> str:
    """Text that cannot move the cursor or colour the screen, cut to a length."""
    shown = text.replace("\n", "⏎")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown[:limit])
    return shown + ("…" if len(text) > limit else "")
