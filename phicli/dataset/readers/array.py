"""One JSON array of objects, however large and however it is laid out, element by element."""

import codecs
import json
import re
from collections.abc import Iterator

from phicli.dataset import lines
from phicli.dataset.lines import Line, LineReader
from phicli.errors import BadInput

# Only where a value ends is of interest: whoever parses it says what is wrong in it. So numbers stay digits.
_SCAN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).scan_once  # type: ignore[attr-defined]
_CUT = 16  # characters before the end of what was read in which a fault may only be a cut: "tru", "\u12"
_KEPT = 1 << 12  # characters that are kept of what is passed over; a row may begin in the last of them
_SCANNED_IN_VAIN = 1 << 30  # characters; nested faults could make the time grow with the square of the size
_BLANK = re.compile(r"[ \t\r\n]*")
_END = re.compile(r"[ \t\r\n]*([,\]])")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\\r\n]|\\.){0,200}")\s*:')
_INDENTED = re.compile(rb"[\r\n]\s*")


class ArrayReader(LineReader):
    """The elements of a JSON array, numbered from 1; line breaks between their tokens become blanks.

    A broken element is a row with a fault, and reading goes on where the next one seems to begin: an object with the
    first key of the last sound one. What stands after the array, or that its end is missing, is a row with a fault too.
    """

    kind = "a JSON array"
    textual = False
    numbers_rows = True

    def __iter__(self) -> Iterator[Line]:
        self._pieces = codecs.iterdecode(self._utf8(), "utf-8", "surrogateescape")
        self._text, self._at = "", 0  # what was read and is needed, and where in it we are
        self._key = ""  # the first one of the last sound element, as it is written there
        self._in_vain = 0
        self._peek()
        self._at += 1  # the bracket
        number, before = 1, "["
        while before != "]":
            if not (character := self._peek()):
                yield Line(number, b"[", fault="the array has no end: is the file cut off?")
                return
            if character == "]":
                if before == ",":
                    yield Line(number, b",", fault="nothing stands after the last comma")
                self._at += 1
                break
            try:
                end = self._find_end()
            except ValueError as e:
                yield Line(number, self._pass_over(), fault=str(e))
                before = "" if self._peek() else "]"  # its own bracket was passed over too
            else:
                yield Line(number, self._element(end))
                before = end[1]
            number += 1
        if self._peek():
            rest = self._text[self._at : self._at + _KEPT]
            yield Line(number, _bytes("]" + rest), fault="text after the end of the array")

    def _find_end(self) -> re.Match:
        """The comma or bracket behind the element that begins here, with blanks before it; reads on to find it.

        Raises:
            ValueError: it is broken, and how.
        """
        while True:
            try:
                after = _SCAN(self._text, self._at)[1]
                if found := _END.match(self._text, after):
                    return found
                why, place, cut = "Expecting ',' or ']'", _after_blanks(self._text, after), False
            except StopIteration as e:
                why, place, cut = "Expecting value", e.value, False
            except json.JSONDecodeError as e:
                why, place, cut = e.msg.removesuffix(" at"), e.pos, e.msg.startswith("Unterminated string")
            except RecursionError:
                self._in_vain += 1 << 14
                raise ValueError("nested too deeply") from None
            cut = cut or place > len(self._text) - _CUT
            place -= self._at
            if not cut or not self._read_on():
                self._in_vain += place
                if cut and len(self._text) >= lines.MAX_LINE:
                    raise ValueError(f"longer than {lines.MAX_LINE >> 20} MB")
                raise ValueError(f"{why} at character {place + 1}")

    def _element(self, end: re.Match) -> bytes:
        """The sound element before its end; goes behind that."""
        if key := _FIRST_KEY.match(self._text, self._at):
            self._key = key[1]
        data = _bytes(self._text[self._at : end.start()])
        self._at = end.end()
        return _INDENTED.sub(b" ", data) if b"\n" in data or b"\r" in data else data

    def _pass_over(self) -> bytes:
        """Go to what seems to be the next element; returns what is passed over, or its beginning."""
        if self._in_vain > _SCANNED_IN_VAIN:
            raise BadInput("too many broken elements in the array", where=self.name)
        own = _FIRST_KEY.match(self._text, self._at)
        key = re.escape(self._key or (own[1] if own else ""))
        begins = re.compile(rf"[,\n]\s*(?=\{{\s*{key}\s*{':' if key else ''})")
        passed = ""
        while not (found := begins.search(self._text, self._at)):
            known = self._at
            self._at = max(known, len(self._text) - _KEPT)
            passed += self._text[known : self._at][: _KEPT - len(passed)]
            if not self._read_on():
                found = re.compile(r"\Z").search(self._text, self._at)
                break
        passed += self._text[self._at : found.start()][: _KEPT - len(passed)]  # type: ignore[union-attr]
        self._at = found.end()  # type: ignore[union-attr]
        return _bytes(passed.rstrip() + ",")  # with it, it is JSON in no case

    def _peek(self) -> str:
        """The next character that is not blank, where we are then; "" at the end of the file."""
        while True:
            self._at = _after_blanks(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        """Read as much again as there is from here on, so that reading again from here stays linear; False at the end
        of the file, or where there is as much as a row may have."""
        held = len(self._text) - self._at
        pieces, more = [self._text[self._at :]], 0
        while held < lines.MAX_LINE and more <= held and (piece := next(self._pieces, "")):
            pieces.append(piece)
            more += len(piece)
        self._text, self._at = "".join(pieces), 0
        return more > 0


def _after_blanks(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
