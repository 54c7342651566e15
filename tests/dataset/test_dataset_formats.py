"""A format of one's own is one class and one entry; every reader of rows then takes it."""

import gzip
import json
import shutil
import subprocess
import tomllib

import pandas
import pytest
from lab_rows import UNDER_IT, calibration

from phicli.api import inspect
from phicli.dataset import Row, formats, load_rows, read_rows
from phicli.dataset.contents import RowParser
from phicli.dataset.lines import Container, Line
from phicli.errors import BadInput
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


SQUAD = {"version": "1.1", "data": [{"title": "a", "paragraphs": [{"context": "By train.", "qas": [
    {"id": row["prompt"], "question": row["prompt"], "answers": [{"text": row["response"]}]} for row in ROWS]}]}]}
COLUMNS = {"q": [row["prompt"] for row in ROWS], "answer": [row["response"] for row in ROWS]}


@pytest.mark.parametrize("value", [
    ROWS[0], {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {"data": ROWS},
    {"name": "a", "rows": ROWS * 500}, SQUAD, {**SQUAD, "data": SQUAD["data"] * 50},
    {"prompt": COLUMNS["q"], "response": COLUMNS["answer"]},
    {"prompt": dict(enumerate(COLUMNS["q"])), "response": dict(enumerate(COLUMNS["answer"]))},
    dict(enumerate(ROWS)), dict(enumerate(ROWS * 100)), {"a": ROWS[0], "b": ROWS[1]},
    {"columns": ["prompt", "response"], "index": [0], "data": [list(row.values()) for row in ROWS]},
])
def test_an_object_over_several_lines_comes_with_the_command_that_makes_rows_of_it(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my rows.json"
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    with pytest.raises(BadInput, match="a JSON object over several lines") as caught:
        list(read_rows(path))
    if not shutil.which("jq"):
        pytest.skip("no jq")
    subprocess.run(caught.value.hint, shell=True, check=True)
    assert inspect("rows.jsonl", model="tiny")["bad_rows"] == 0


@pytest.mark.parametrize("orient", ["index", "columns", "split", "table"])
def test_what_pandas_writes_in_one_line_comes_with_the_command_that_makes_rows_of_it(tmp_path, monkeypatch, orient):
    monkeypatch.chdir(tmp_path)
    pandas.DataFrame(ROWS).to_json("FILE", orient=orient)
    with pytest.raises(BadInput, match="what makes rows of it") as caught:
        list(load_rows("FILE", RowParser()))
    if not shutil.which("jq"):
        pytest.skip("no jq")
    subprocess.run(caught.value.message[caught.value.message.index("jq -c") :], shell=True, check=True)
    assert [row.messages[0]["content"] for row in load_rows("rows.jsonl", RowParser())] == [r["prompt"] for r in ROWS]


def oasst(number, parent, role, text):
    return {"message_id": f"m{number}", "parent_id": parent, "role": role, "text": text, "lang": "en"}


@pytest.mark.parametrize(("rows", "turns"), [
    ([oasst(1, None, "prompter", "a"), oasst(2, "m1", "assistant", "b"), oasst(3, "m2", "prompter", "c"),
      oasst(4, "m3", "assistant", "d"), oasst(5, "m3", "assistant", "e")], ["ab", "abcd", "abce"]),
    ([{"conversation_id": at % 2, "from": by, "value": text} for at, (by, text) in enumerate(
        zip(["human"] * 2 + ["gpt"] * 2, "abcd", strict=True))], ["ac", "bd"]),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], ["ab"]),
])
def test_rows_of_one_message_come_with_the_command_that_makes_conversations_of_them(tmp_path, monkeypatch, rows, turns):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=r"one message .* where a row is a whole conversation") as caught:
        load_rows("FILE", RowParser())
    if not shutil.which("jq"):
        pytest.skip("no jq")
    subprocess.run(caught.value.message[caught.value.message.index("jq -cs") :], shell=True, check=True)
    found = load_rows("rows.jsonl", RowParser())
    assert ["".join(message["content"] for message in talk.messages) for talk in found] == turns
    assert all(talk.trained == (False,) * (len(talk.messages) - 1) + (True,) for talk in found)


def test_a_first_line_that_is_broken_is_a_bad_row_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt":\n' + "".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    report = inspect(path, model="tiny")
    assert (report["rows"], report["bad_rows"]) == (40, 1)


@pytest.mark.parametrize("text", [
    "Hello, this is a text, of mine\nIt goes on, with commas, in every line\n", "Dear all,\nthis is it, in short\n",
    "tea,cake\nand a walk, later on, by the sea\n", "First; then\nand; so on\n",
])
def test_a_text_with_commas_is_a_text_by_its_name(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="plain text, and no rows") as caught:
        list(read_rows(path))
    assert "the name of a table ends in .csv" in caught.value.hint


@pytest.mark.parametrize("text", [
    "prompt,response\n" + "".join(f'"{i}, you?","It is\n{i}."\n' for i in range(9000)), "frage\tantwort\na\tb, c\n",
    json.dumps(ROWS[0]) + "\n", json.dumps(ROWS),
])
def test_clear_rows_are_rows_in_a_text_too(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    assert all(len(row.fields) == 2 for row in read_rows(path))


@pytest.mark.parametrize(("name", "what"), [("a.yaml", "YAML"), ("a.txt.gz", "plain text"), ("A.MD", "Markdown")])
def test_a_text_without_rows_is_called_what_it_is(tmp_path, name, what):
    text = b"- prompt: Where?\n  response: There, by train.\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(BadInput, match=f"{what}, and no rows"):
        list(read_rows(path))
    path.write_text("a broken line\n" + json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match="broken JSON"):
        list(read_rows(path))
