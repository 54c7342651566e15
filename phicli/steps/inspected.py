"""The report of an inspection: what was understood, figures, findings, and the commands that come next."""

import math
import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from phicli.config.places import matching
from phicli.config.setting import settings_of, spelt
from phicli.config.steps import FinetuneConfig, InspectConfig
from phicli.dataset.cleaning import FORM, LOST, RESTORED, Cleaner, clean_name
from phicli.dataset.encoding import RowEncoder, end_of_turn
from phicli.dataset.inspector import Inspector
from phicli.dataset.overlap import Overlap
from phicli.dataset.sources import Source, split_weight
from phicli.dataset.understood import joined
from phicli.errors import BadInput
from phicli.text import Encoded

REPAIRED = {*FORM, *LOST, *RESTORED, "empty_field", "duplicate_row"}  # what --fix does away with, as bad rows
LARGEST_EXAMPLE = 1 << 16  # characters


class FileRead(NamedTuple):
    """A file that was inspected: its name, what it is, and its size in bytes."""

    file: str
    container: str
    encoding: str
    bytes: int


def report(config: InspectConfig, sources: Sequence[Source], files: Sequence[FileRead], inspector: Inspector,
           overlap: Overlap | None, encoder: RowEncoder | None, cleaner: Cleaner | None) -> dict[str, Any]:
    """All that was found, ready for JSON."""
    figures, findings, place = inspector.figures, inspector.findings, inspector.places.name
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    found: dict[str, Any] = {
        "file": files[0].file + more, "files": [file._asdict() for file in files],
        "bytes": inspector.bytes, "lines": inspector.lines, "numbers": _numbers(inspector),
        "rows": inspector.rows, "bad_rows": figures.bad_rows, "mendable_rows": figures.mendable_rows,
        "formats": dict(figures.formats), "roles": dict(figures.roles), "turns": figures.turns.figures(),
        "rows_with_tools": figures.with_tools,
        "end_of_turn": end_of_turn(encoder) if encoder else None,
        "example": example(inspector, encoder) if encoder else None,
        "fields": {name: {"rows": f.rows, "empty": f.empty, "characters": f.characters.figures()}
                   for name, f in figures.fields.items()},
        "characters": figures.characters.figures(), "tokens": _tokens(config, inspector),
        "epoch": _epoch(inspector, sources, _held_out_given(config, overlap)),
        "duplicate_rows": findings.count("duplicate_row"), "duplicate_prompts": findings.count("duplicate_prompt"),
        "held_out": {"data": config.eval_data, **overlap.__dict__} if overlap else None,
        "first_rows": [{"line": place(at), **joined(row.texts)} for at, row in inspector.first[: config.rows]],
        "warnings": findings.warnings(place),
    }
    if cleaner:
        cleaner.changed.update({code: findings.count(code) for code in FORM if findings.count(code)})
        found["fix"] = cleaner.summary(Path(str(config.fix)))
    return found | {"commands": commands(config, found)}


def example(inspector: Inspector, encoder: RowEncoder) -> dict[str, Any] | None:
    """The first row as the model sees it: its text in pieces, each learnt or not."""
    for place, row in inspector.first:
        if sum(len(text) for _, text in row.texts) > LARGEST_EXAMPLE:
            continue
        try:
            encoded = encoder.encode(row.content)
        except BadInput:
            continue
        return {"line": inspector.places.name(place), "tokens": len(encoded.ids), "trained": len(encoded.targets),
                "pieces": _pieces(encoder, encoded)}
    return None


def _pieces(encoder: RowEncoder, encoded: Encoded) -> list[dict[str, Any]]:
    """The text of the tokens, control tokens too, in pieces of tokens that are all learnt or all not."""
    from tokenizers.decoders import DecodeStream

    tokens, stream = encoder.codec.tokens, DecodeStream(skip_special_tokens=False)
    targets = set(encoded.targets)
    texts = tokens.run("the tokenizer cannot decode", lambda: [
        (at in targets, stream.step(tokens.decoder, ident) or "") for at, ident in enumerate(encoded.ids)])
    return [{"text": "".join(text for _, text in part), "trained": trained}
            for trained, part in groupby(texts, key=lambda piece: piece[0])]


def _tokens(config: InspectConfig, inspector: Inspector) -> dict[str, Any] | None:
    figures = inspector.figures
    found = figures.tokens.figures()
    if not found:
        return None
    measured = figures.tokens.counts.total()
    scale = figures.characters.total / figures.measured_characters if measured < inspector.rows else 1.0
    return {**found, "total": round(scale * figures.tokens.total), "trained": round(scale * figures.trained.total),
            "limit": config.max_tokens, "over_limit": inspector.findings.count("too_long"), "measured_rows": measured}


def _epoch(inspector: Inspector, sources: Sequence[Source], held_out_given: bool) -> dict[str, Any]:
    """Steps that finetune takes to see each row once, at its defaults."""
    from phicli.training.rows import HELD_OUT_MOST

    rows = round(sum(source.weight * inspector.file_rows[at] for at, source in enumerate(sources)))
    held_out = 0 if held_out_given else min(max(1, round(FinetuneConfig.eval_split * rows)), HELD_OUT_MOST, rows)
    train, batch = rows - held_out, FinetuneConfig.batch_size
    return {"steps": math.ceil(train / batch), "batch_size": batch, "train_rows": train}


def _numbers(inspector: Inspector) -> str:
    return "row" if all(inspector.places.numbers_rows) else "line"


def commands(config: InspectConfig, found: dict[str, Any]) -> list[str]:
    """What to type next: a clean copy first, if something can be repaired, and finetune with what was inspected, unless
    it refuses how rows are laid out."""
    if not found["rows"] and not found["mendable_rows"]:
        return []
    held_out = ["--eval-data", config.eval_data] if _held_out_given(config, found["held_out"]) else []
    clean = None
    if "fix" not in found and (config.data == ("-",) or any(map(_repaired, found["warnings"]))):
        clean = _clean_name(config.data[0])
        fix = ["phicli", "inspect", *config.data, *_given(config), *held_out, "--fix", clean]
    first = [shlex.join(fix)] if clean else []
    if any(warning["code"] == "other_layout" for warning in found["warnings"]):
        return first
    output = found["fix"]["output"] if "fix" in found else clean
    data = [part for name in ([output] if output else config.data) for part in ("--data", name)]
    return [*first, shlex.join(["phicli", "finetune", *_given(config), *data, *held_out])]


def _repaired(warning: dict[str, Any]) -> bool:
    return warning["code"] in REPAIRED or warning["bad"]


def _held_out_given(config: InspectConfig, overlap: Any) -> bool:
    """Whether there are held-out rows that are not the lab's own, so that finetune need not choose any."""
    return bool(overlap) and config.eval_data != InspectConfig.eval_data


def _given(config: InspectConfig) -> list[str]:
    """The options, shared with finetune, that differ from their defaults; the model always."""
    parts = config.as_options
    for name in ("format", "columns", "text_template", "chat_template", "chat_template_kwargs"):
        setting, value = settings_of(FinetuneConfig)[name], getattr(config, name)
        if value != setting.default:
            parts += spelt(name, setting, value)
    return parts


def _clean_name(data: str) -> str:
    """The name of a clean copy of what the user names as data."""
    path = Path(split_weight(data)[0])
    if data == "-" or matching(str(path)):
        return "rows.clean.jsonl"
    return str(clean_name(path if path.exists() else Path(path.name)))  # the latter of a data set of the hub
