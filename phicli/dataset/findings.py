"""What `inspect` can find: the table of kinds, and the collector of where each was seen."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SHOWN_LINES = 5
STYLE_SHARE, STYLE_ROWS = 1 / 3, 10  # a kind of damage in more rows than either is how their author writes


@dataclass(frozen=True)
class Kind:
    """message: what it is; {field} is the field's name. bad: such a row cannot be used, and `load_rows` refuses it.
    remark: for a person to know, and fine if meant. style: where many rows have it, it is how their author writes."""

    message: str
    suggestion: str
    bad: bool = False
    remark: bool = False
    style: bool = False


SAVE_AS_UTF8 = "save it as UTF-8 without byte order mark; --fix OUT does"
ENDINGS = "JSON Lines uses LF; --fix OUT writes it"
LOST = "the characters are lost here: take the row from its source again; --fix OUT leaves it out"

KINDS: dict[str, Kind] = {
    "invalid_utf8": Kind("not valid UTF-8", "find out the encoding and save as UTF-8; --fix OUT reads such lines "
                         "as Windows-1252 where that gives sound text", bad=True),
    "bad_json": Kind("broken JSON", "one complete JSON object a line; --fix OUT leaves such lines out", bad=True),
    "bad_row": Kind("no row can be read there", "mend the file there; --fix OUT leaves such rows out", bad=True),
    "duplicate_key": Kind("a field stands twice in one object", "keep one of the two", bad=True),
    "not_object": Kind("JSON, but not an object", 'a row is an object: {"prompt": "…", "response": "…"}', bad=True),
    "unknown_format": Kind("fields that no known format has", "name them: --map prompt=FIELD --map response=FIELD; "
                           "of a table the first line has the names", bad=True),
    "wrapped": Kind("rows within one object", 'each row is a line of its own: {"prompt": "…", "response": "…"}',
                    bad=True),
    "preference": Kind("rows of preferred and rejected answers", "phicli trains on answers: take the preferred ones",
                       bad=True),
    "labelled_bad": Kind("rows of preference training (KTO)", "--fix OUT leaves the bad answers out and keeps the good "
                         "ones", bad=True),
    "media": Kind("rows with pictures, sounds or videos", "phicli trains on text; --fix OUT leaves them out", bad=True),
    "bad_messages": Kind("messages that are not in order", "each a role and a text: "
                         '{"role": "user", "content": "…"}', bad=True),
    "nothing_to_learn": Kind("no answer of an assistant in it", "it teaches a model nothing to say", bad=True),
    "missing_field": Kind("no field '{field}'", "fill it in, or name the right field: --map", bad=True),
    "not_text": Kind("'{field}' is not text", "write it as a string; --fix OUT does so with numbers", bad=True),
    "lone_surrogate": Kind("'{field}' has half of a character (a lone surrogate)", LOST, bad=True),
    "encoding": Kind("the file is {field}", SAVE_AS_UTF8),
    "bom": Kind("byte order mark at the beginning", SAVE_AS_UTF8),
    "crlf": Kind("Windows line endings (CRLF)", ENDINGS),
    "cr": Kind("old Macintosh line endings (CR)", ENDINGS),
    "mixed_line_endings": Kind("line endings differ from the file's most common one", ENDINGS),
    "no_final_newline": Kind("the last line has no line ending: cut off?", "see whether the last row is whole; "
                             "--fix OUT ends it"),
    "blank_line": Kind("blank lines", "they are passed over; --fix OUT drops them"),
    "empty_field": Kind("'{field}' is empty", "fill it in or remove the row; --fix OUT removes rows "
                        "without the template's last field"),
    "nan_text": Kind("'{field}' is only a word such as nan or null", "probably an empty cell of a table: remove the "
                     "row; --fix OUT does"),
    "replacement_character": Kind("'{field}' has U+FFFD (�), the mark of a failed decoding", LOST),
    "mojibake": Kind("'{field}' has UTF-8 that was read as Windows-1252 (Ã© for é)", "--fix OUT restores it"),
    "control_character": Kind("'{field}' has control characters", "--fix OUT removes them, and makes CRLF LF"),
    "html_entity": Kind("'{field}' has HTML entities (&amp;)", "--fix OUT makes them characters"),
    "glued_punctuation": Kind("'{field}' has punctuation glued to the next word (\"must-visit,t don't\")",
                              "words were lost there, or only a blank: take the row from its source again, or mend it",
                              style=True),
    "doubled_word": Kind("'{field}' has a word twice in a row (the the)", "mend it: the model learns to stutter",
                         style=True),
    "cut_off": Kind("'{field}' ends in the middle of a sentence", "probably cut at a limit of length: take the row "
                    "from its source again, or the model learns to stop there", style=True),
    "markup": Kind("'{field}' has leftover markup (HTML tags, BBCode, wiki)", "remove it, unless the model is to write "
                   "it", style=True),
    "special_token": Kind("'{field}' has text that looks like a special token",
                          "perhaps a chat template is in it already; to phicli it is ordinary text, not to every tool"),
    "unknown_template_token": Kind("the text template's {field} is no special token of this model",
                                   "give this model's own layout with --text-template"),
    "duplicate_row": Kind("the same row as an earlier one", "it trains twice; --fix OUT keeps the first"),
    "duplicate_prompt": Kind("the prompt of an earlier row with another response", "fine if meant; "
                             "if not, keep the better one", remark=True),
    "not_laid_out": Kind("the model's chat template refuses them", "roles must alternate in some templates, and some "
                          "show no calls of tools: --chat-template FILE gives another; --fix OUT leaves them out",
                          bad=True),
    "no_end_of_turn": Kind("the answer does not end in a token that ends a turn", "the model would not learn to stop: "
                           "leave --text-template out, or give a --chat-template FILE that ends answers"),
    "other_layout": Kind("the rows would not be laid out as chat lays them out", "finetune refuses that: leave "
                         "--text-template out, or give a --chat-template FILE that ends answers; its --force-template "
                         "trains all the same"),
    "near_duplicate": Kind("nearly the same row as an earlier one", "keep one of them, unless the difference matters"),
    "held_out": Kind("rows that are held out in {field} too", "a figure of them says nothing of what is new: take them "
                     "out of one of the two"),
    "other_language": Kind("in another language than most rows ({field})", "fine if meant; if not, remove the row",
                           remark=True),
    "too_long": Kind("longer than the limit of {field} tokens", "training cuts the end off: shorten it or raise "
                     "--max-tokens here and --seq-len in finetune"),
    "extreme_length": Kind("'{field}' is more than 20 times as long as usual", "see whether several rows ran together"),
    "extra_field": Kind("field '{field}' is not used", "fine if meant", remark=True),
}


@dataclass
class Finding:
    """How many rows (or lines) one kind of finding touches, and where the first of them stand."""

    code: str
    field: str | None = None
    count: int = 0
    places: list[int] = dataclasses.field(default_factory=list)
    detail: str | None = None
    style: bool = False

    def warning(self, place: Callable[[int], int | str]) -> dict[str, Any]:
        kind = KINDS[self.code]
        message = kind.message.format(field=self.field)
        if self.detail:  # which may say it all
            message = self.detail if f"'{self.field}'" in message and f"'{self.field}'" in self.detail else (
                f"{message}: {self.detail}")
        if self.style:
            message += " in more than a third of the rows: perhaps how they are meant to be"
        return {"code": self.code, "field": self.field, "count": self.count, "lines": list(map(place, self.places)),
                "message": message, "suggestion": "nothing, if it is meant" if self.style else kind.suggestion,
                "bad": kind.bad, "remark": kind.remark or self.style}


class Findings(dict[tuple[str, str | None], Finding]):
    """Findings by code and field."""

    def add(self, code: str, place: int | None, field: str | None = None, *, detail: str | None = None) -> None:
        """Note one more; of the details only the first is kept. place None: it is about the whole file."""
        found = self.get((code, field))
        if found is None:
            found = self[code, field] = Finding(code, field, detail=detail)
        found.count += 1
        if place is not None and len(found.places) < SHOWN_LINES:
            found.places.append(place)

    def merge(self, other: Finding) -> None:
        """Add a finding in further rows."""
        found = self.setdefault((other.code, other.field), Finding(other.code, other.field, detail=other.detail))
        found.count += other.count
        found.places = sorted(found.places + other.places)[:SHOWN_LINES]

    def count(self, code: str) -> int:
        return sum(f.count for f in self.values() if f.code == code)

    def mark_style(self, rows: int) -> None:
        """Tell what is damage from what is in so many of the rows that it must be meant."""
        for finding in self.values():
            finding.style = KINDS[finding.code].style and finding.count > max(STYLE_SHARE * rows, STYLE_ROWS)

    def warnings(self, place: Callable[[int], int | str]) -> list[dict[str, Any]]:
        """All of them in the order of KINDS, first what makes rows unusable. place: how a place is called."""
        order = {code: at for at, code in enumerate(KINDS)}
        return [f.warning(place) for f in sorted(self.values(), key=lambda f: (order[f.code], f.places[:1]))]
