"""`phicli inspect`: what is in files of rows, and what is wrong with it."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from phicli.cli import console, forecasts, options
from phicli.cli.following import Next
from phicli.config.steps import QUANTIZE_ALGORITHMS, InspectConfig
from phicli.errors import BadInput

PREVIEW = 160  # characters shown of a field
HEAD, TAIL = 1400, 400  # characters shown of the first row as the model sees it


def inspect(
    config: InspectConfig,
    flags: options.Flags,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 if there are findings that are more "
                                         "than remarks")] = False,
) -> Sequence[Next]:
    """Show what rows say and how the model sees them; figures, and everything that may be wrong with the data.

    Examples:
      phicli inspect chats.jsonl --model tiny
      phicli inspect chats.jsonl --fix clean.jsonl
    More: docs/inspect.md, docs/data.md
    """
    if dry_run:
        forecasts.show_step("inspect", flags, json)
        return [("inspect",)]
    from phicli.steps.inspect import inspect_file

    with console.task_log("inspect", config.root_folder) as progress:
        report = inspect_file(config, progress)
    if json:
        console.result_json(report)
    else:
        _show(report)
    if not report["rows"] and not report.get("fix"):
        worst = max((w for w in report["warnings"] if w["bad"]), key=lambda w: w["count"])
        helps = [*report["commands"][:1], _plain(worst["suggestion"])]
        raise BadInput(f"no row can be used: {_plain(worst['message'])}", where=report["file"],
                       hint=helps[0], also=helps[1:])
    counted, commands = [w for w in report["warnings"] if not w["remark"]], report["commands"]
    if strict and counted:
        found = ", ".join(f"{w['code']} ({w['count']})" for w in counted)
        cures = [line for line in commands if "fix" in report or " --fix " in line]
        raise BadInput(f"findings: {found}", where=report["file"], hint=[*cures, _plain(counted[0]["suggestion"])][0])
    quantized = any((config.root_folder / name).is_dir() for name in QUANTIZE_ALGORITHMS)
    trains = [line for line in commands if line.startswith("phicli finetune ")]
    return commands if quantized or not trains else [*commands[:-1], ("quantize",), *trains]


def _show(report: dict[str, Any]) -> None:
    console.result(_summary(report))
    console.result_list(_understood(report))
    findings = [(w["code"], f"{_seen(report, w)}: {_plain(w['message'])}\n-> {_plain(w['suggestion'])}")
                for w in report["warnings"]]
    if findings:
        console.result_list(findings, title="Findings")
    if report["example"]:
        learnt = f"{report['example']['trained']} of {report['example']['tokens']} tokens, those marked, are trained"
        console.result_marked(_shortened(report["example"]["pieces"]),
                              f"Row {report['example']['line']} as the model sees it: {learnt}")
    first = [(f"{report['numbers']} {row['line']}" if isinstance(row["line"], int) else row["line"],
              "\n".join(f"{_plain(name)}: {_plain(text, PREVIEW)}" for name, text in row.items() if name != "line"))
             for row in report["first_rows"]]
    if first:
        console.result_list(first, title="First rows")
    console.result("")
    measured = [*report["fields"].items(), ("whole row", {**report, "empty": None})]
    figures = [(_plain(name), f["rows"], f["empty"], what, *map(console.number, list(f[what].values())[:4]))
               for name, f in measured for what in ("characters", "tokens") if f.get(what)]
    if figures:
        console.result_table(["field", "rows", "empty", "of", "min", "mean", "p95", "max"], figures, title="Fields")
        console.note("p95: 95 of 100 are no longer; tokens: the pieces of text that a model reads")
    if "fix" in report:
        done = report["fix"]
        both = [("changed", code, n) for code, n in done["changed"].items()]
        both += [("left out", code, n) for code, n in done["dropped"].items()]
        both += [("rewritten", "their texts", done["rewritten"]), ("written", done["output"], done["rows"])]
        console.result_table(["clean copy", "for", "rows"], both)


def _summary(report: dict[str, Any]) -> str:
    parts = [f"{report['rows']} rows", f"{report['bad_rows']} that cannot be used",
             f"{report['duplicate_rows']} duplicates"]
    return ", ".join(parts) + ("" if report["warnings"] else ". No findings.")


def _understood(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person wants to know first, each with its name."""
    kinds = " and ".join(dict.fromkeys(file["container"] for file in report["files"]))
    yield "file", f"{_plain(report['file'])}, {kinds}, {console.size(report['bytes'])}"
    yield "format", ", ".join(f"{name} ({n})" if len(report["formats"]) > 1 else name
                              for name, n in report["formats"].items()) or "none"
    if report["turns"]:
        turns = report["turns"]
        yield "answers", f"{turns['mean']:g} a row to learn, {turns['max']} at most"
        yield "messages", ", ".join(f"{name} {n}" for name, n in report["roles"].items())
    if report["rows_with_tools"]:
        yield "tools", f"in {report['rows_with_tools']} rows"
    if report["example"]:
        yield "end of turn", report["end_of_turn"] or "none: the model would not learn to stop"
    if tokens := report["tokens"]:
        sample = tokens["measured_rows"] < report["rows"]
        about = f"about, from {tokens['measured_rows']} rows: " if sample else ""
        over = f"{tokens['over_limit']}{' of those' if sample else ''} rows over {tokens['limit']}"
        yield "tokens", f"{about}{tokens['total']}, {tokens['trained']} of them trained; {over}"
    epoch = report["epoch"]
    yield "epoch", f"{epoch['steps']} steps of {epoch['batch_size']} rows, {epoch['train_rows']} to train on"
    if (held := report["held_out"]) and held["rows"]:
        yield "held out", (f"of {held['rows']} rows in {_plain(held['data'])} {held['exact']} are here too, "
                           f"{held['near']} nearly so")


def _seen(report: dict[str, Any], warning: dict[str, Any]) -> str:
    """How often, and where: "3 rows, lines 4, 17, 20"."""
    count, lines = warning["count"], warning["lines"]
    found = f"{count} {'row' if count == 1 else 'rows'}"
    if not lines:
        return found
    name = f"{report['numbers']}{'s' if len(lines) > 1 else ''} " if isinstance(lines[0], int) else ""
    return f"{found}, {name}{', '.join(_plain(str(line)) for line in lines)}{' …' if count > len(lines) else ''}"


def _shortened(pieces: list[dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, without the middle of a long one."""
    length, at = sum(len(piece["text"]) for piece in pieces), 0
    for piece in pieces:
        text, begin = piece["text"], at
        at += len(text)
        if length > HEAD + TAIL:
            head, tail = text[: max(0, HEAD - begin)], text[max(0, length - TAIL - begin) :]
            left_out = begin <= HEAD < at
            text = head + (f" […{length - HEAD - TAIL} characters…] " if left_out else "") + tail
        if text:
            yield text, piece["trained"]


def _plain(text: str, limit: int = 1000) -> str:
    """Text that cannot move the cursor or colour the screen, cut to a length."""
    shown = text.replace("\n", "⏎")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown[:limit])
    return shown + ("…" if len(text) > limit else "")
