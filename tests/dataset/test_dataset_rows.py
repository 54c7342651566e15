"""The strict readers: every fault ends them with file and line."""

import gzip
import json
import re

import pytest
from lab_rows import UNDER_IT

from phicli.dataset import Row, load_rows, read_rows
from phicli.dataset.contents import RowParser
from phicli.errors import BadInput
from phicli.text import Conversation

GOOD = {"prompt": "Where?", "response": "There é 🙂", "id": 7}


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_read_rows_streams_all_fields_and_passes_blank_lines(tmp_path):
    path = written(tmp_path, GOOD, "\n", "  \n", GOOD)
    assert list(read_rows(path)) == [Row(1, GOOD), Row(4, GOOD)]


def test_rows_before_a_fault_are_given(tmp_path):
    rows = read_rows(written(tmp_path, GOOD, "{broken\n"))
    assert next(rows).line == 1
    with pytest.raises(BadInput):
        next(rows)


def test_load_rows_keeps_the_fields_of_the_template(tmp_path):
    (row,) = load_rows(written(tmp_path, GOOD), UNDER_IT)
    assert row.fields == {"prompt": "Where?", "response": "There é 🙂"}


def test_load_rows_understands_rows_by_their_fields(tmp_path):
    (row,) = load_rows(written(tmp_path, GOOD), RowParser())
    assert row == Conversation.of({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There é 🙂"})


def test_gzip(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(load_rows(path, UNDER_IT)) == 1


@pytest.mark.parametrize(("bad", "message"), [
    ('{"prompt": "a", "response": "b"\n', "broken JSON: Expecting ',' delimiter at column"),
    ("[" * 100_000 + "\n", "broken JSON"),
    ('["a"]\n', "not a JSON object: it is a list"),
    ("null\n", "not a JSON object: it is null"),
    ('{"prompt": "a", "prompt": "b", "response": ""}\n', "field 'prompt' stands there twice"),
    ({"prompt": "a"}, "no field 'response'"),
    ({"prompt": "a", "response": None}, "'response' is null, not text"),
    ({"prompt": 5, "response": "a"}, "'prompt' is a number, not text"),
    ('{"prompt": "a", "response": "half \\ud83d"}\n', "half of a character"),
])
def test_a_fault_is_named_with_file_and_line_and_what_helps(tmp_path, bad, message):
    path = written(tmp_path, *[GOOD] * 16, bad, GOOD)
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        load_rows(path, UNDER_IT)
    assert caught.value.where == f"{path}:17"
    assert caught.value.hint == f"phicli inspect {path}"


def test_invalid_utf8(tmp_path):
    path = tmp_path / "x"
    path.write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(BadInput, match="byte 0xe9 at position 13"):
        list(read_rows(path))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_no_rows(tmp_path, content):
    with pytest.raises(BadInput, match="no rows"):
        load_rows(written(tmp_path, content), UNDER_IT)
