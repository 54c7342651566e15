"""A format of one's own is one class and one entry; every reader of rows then takes it."""

import gzip
import json
import tomllib

import pytest
from lab_rows import UNDER_IT, calibration

from phicli.api import inspect
from phicli.dataset import Row, formats, load_rows, read_rows
from phicli.dataset.lines import Container, Line
from phicli.quantization.calibration import calibration_tokens

ROWS = [{"prompt": f"Where, {i}?", "response": f'By "train" é {i},\nor on foot'} for i in range(40)]


class TomlReader(Container):
    """An array of tables, each a row."""

    kind = "TOML"

    def __iter__(self):
        for number, fields in enumerate(tomllib.loads(b"".join(self.stream).decode())["row"], 1):
            yield Line(number, json.dumps(fields).encode())


@pytest.fixture(params=["rows.toml", "ROWS.TOML.gz"])
def table(tmp_path, monkeypatch, request):
    monkeypatch.setitem(formats.READERS, ".toml", TomlReader)
    path = tmp_path / request.param
    text = "".join("[[row]]\n" + "".join(f"{key} = {json.dumps(row[key])}\n" for key in row) for row in ROWS)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_rows_of_another_format(table):
    assert list(read_rows(table)) == [Row(i, row) for i, row in enumerate(ROWS, 1)]
    assert [row.fields for row in load_rows(table, UNDER_IT)] == ROWS


def test_it_is_inspected_and_written_clean(table, tmp_path):
    report = inspect(table, model="tiny", fix=str(tmp_path / "clean.jsonl"))
    assert (report["rows"], report["bad_rows"], report["warnings"]) == (40, 0, [])
    assert [row.fields for row in read_rows(tmp_path / "clean.jsonl")] == ROWS


def test_it_calibrates(table, tiny):
    lines = table.with_name("rows.jsonl")
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    same = [calibration_tokens(tiny, calibration(file, 4, 64)).tolist() for file in (table, lines)]
    assert same[0] == same[1]


def test_a_name_that_says_nothing_is_json_lines(tmp_path):
    path = tmp_path / "rows"
    path.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    assert [row.fields for row in read_rows(path)] == ROWS[:1]
    assert not formats.has_rows(path) and formats.has_rows("a/B.JSON.gz")
