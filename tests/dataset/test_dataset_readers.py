"""Every container that rows come in, written by other libraries, plain and compressed, as a file and from stdin."""

import bz2
import codecs
import csv
import datetime
import decimal
import gzip
import json
import lzma
import os
import random
import subprocess
import sys

import pandas
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import Dataset

import phicli
from phicli.dataset import lines, load_rows
from phicli.dataset.contents import RowParser
from phicli.dataset.formats import open_rows
from phicli.dataset.lines import Line, LineReader
from phicli.dataset.readers.array import ArrayReader
from phicli.dataset.readers.columnar import ArrowReader, ParquetReader
from phicli.dataset.readers.table import TableReader
from phicli.errors import BadInput, Missing

ROWS = [{"prompt": f"Where, {i}? 日本", "response": f'By "train" {i};\tor é 🙂\non foot'} for i in range(150)]
CHATS = [{"messages": [{"role": "user", "content": f"Where, {i}?"}, {"role": "assistant", "content": "There é."}],
          "tools": None, "id": i} for i in range(150)]
FRAME = pandas.DataFrame(ROWS)


def stream_file(path):
    table = Dataset.from_list(ROWS).data.table
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)


WRITERS = {
    "lines.jsonl": (LineReader, lambda path: FRAME.to_json(path, orient="records", lines=True, force_ascii=False)),
    "array.json": (ArrayReader, lambda path: FRAME.to_json(path, orient="records")),
    "pretty.json": (ArrayReader, lambda path: path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), "utf-8")),
    "comma.csv": (TableReader, lambda path: FRAME.to_csv(path, index=False)),
    "semicolon.csv": (TableReader, lambda path: FRAME.to_csv(path, index=False, sep=";", encoding="utf-8-sig")),
    "utf16.csv": (TableReader, lambda path: FRAME.to_csv(path, index=False, sep="\t", encoding="utf-16")),
    "tab.tsv": (TableReader, lambda path: FRAME.to_csv(path, index=False, sep="\t", lineterminator="\r\n")),
    "rows.parquet": (ParquetReader, lambda path: Dataset.from_list(ROWS).to_parquet(path)),
    "file.feather": (ArrowReader, lambda path: pa.feather.write_feather(FRAME, str(path), chunksize=40)),
    "stream.arrow": (ArrowReader, stream_file),
}
PACKERS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.fixture(scope="module", params=WRITERS)
def written(request, tmp_path_factory):
    reader, write = WRITERS[request.param]
    path = tmp_path_factory.mktemp("written") / request.param
    write(path)
    return reader, path


def read(path):
    with open_rows(path) as reader:
        return list(reader)


def rows_of(path):
    found = read(path)
    assert not [line for line in found if line.fault]
    return [json.loads(line.data) for line in found]


def faults(path):
    return [(line.number, line.fault) for line in read(path) if line.fault]


@pytest.mark.parametrize("packed", PACKERS)
def test_every_container_under_every_compression(written, packed, tmp_path):
    expected, plain = written
    path = tmp_path / (plain.name + packed)
    path.write_bytes(PACKERS[packed](plain.read_bytes()))
    with open_rows(path) as reader:
        assert type(reader) is expected
        found = list(reader)
        assert reader.done == pytest.approx(reader.size, abs=1000) and reader.size == path.stat().st_size
    assert [json.loads(line.data) for line in found] == ROWS
    assert all(b"\n" not in line.data for line in found)
    nameless = path.rename(tmp_path / "nameless")
    assert rows_of(nameless) == ROWS


@pytest.mark.parametrize("packed", PACKERS)
def test_every_container_from_stdin(written, packed):
    code = ("import json, sys\nfrom phicli.dataset.formats import open_rows\n"
            "with open_rows('-') as r: print(json.dumps([json.loads(x.data) for x in r]), r.name)")
    content = PACKERS[packed](written[1].read_bytes())
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert done.stdout.decode() == json.dumps(ROWS) + " stdin\n"


@pytest.mark.parametrize("packed", [p for p in PACKERS if p])
@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2], lambda data: data[:5] + b"\xff" * 20 + data[25:]])
def test_damaged_compression_is_refused(tmp_path, packed, spoil):
    path = tmp_path / f"rows.jsonl{packed}"
    path.write_bytes(spoil(PACKERS[packed](os.urandom(3000).hex().encode())))
    with pytest.raises(BadInput) as caught:
        read(path)
    assert caught.value.where == str(path)


def test_members_of_a_compressed_file_follow_each_other(tmp_path):
    for packed, pack in PACKERS.items():
        path = tmp_path / f"rows.jsonl{packed}"
        path.write_bytes(pack(b'{"a": 1}\n') + pack(b'{"a": 2}\n'))
        assert rows_of(path) == [{"a": 1}, {"a": 2}]


def test_xz_that_asks_for_gigabytes_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    path.write_bytes(lzma.compress(b'{"a": 1}\n', filters=filters))
    with pytest.raises(BadInput, match="emory"):
        read(path)


# Bytes before names

@pytest.mark.parametrize(("name", "content", "expected"), [
    ("x.csv", b'{"a": "1, 2"}\n', LineReader),
    ("x.jsonl", b"prompt,response\n1,2\n", TableReader),
    ("x.jsonl", b'prompt, response"}\n{"prompt": 1}\n', LineReader),
    ("x.parquet", b'[{"a": 1}]', ArrayReader),
    ("x.jsonl", b'[{"role": "user"}]\n[{"role": "user"}]\n', LineReader),
    ("x.csv", b"text\nonly one column\n", TableReader),
    ("x", b"Well, this is a text\nof two lines\n", LineReader),
    ("x", b"", LineReader),
    ("x.parquet", b"\x00\x01", ParquetReader),
])
def test_bytes_say_what_a_file_is_and_its_name_only_if_they_do_not(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with open_rows(path) as reader:
        assert type(reader) is expected


@pytest.mark.parametrize(("write", "what"), [
    (lambda path: path.write_bytes(b"PK\x03\x04\x14\x00"), "spreadsheet"),
    (lambda path: path.write_bytes(b"%PDF-1.7\n"), "PDF"),
])
def test_what_is_no_container_is_refused_in_words(tmp_path, write, what):
    write(tmp_path / "x.json")
    with pytest.raises(BadInput, match=what) as caught:
        read(tmp_path / "x.json")
    assert "Parquet" in caught.value.hint


# JSON arrays

@pytest.mark.parametrize("block", [1, 2, 3, 7, 50, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 3])
def test_an_array_at_every_block_edge(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(lines, "BLOCK", block)
    values = [*CHATS[:3], {}, {"a": [1.5e3, -2, True, None, {"b": "]}\\\"🙂,{"}]}, 12, "text", [1]]
    path = tmp_path / "rows.json"
    path.write_text(" \n" + json.dumps(values, indent=indent) + "\n\n", encoding="utf-8")
    assert rows_of(path) == values
    assert [line.number for line in read(path)] == list(range(1, len(values) + 1))


@pytest.mark.parametrize("broken", [
    '{"a": 1 "b": 2}', '{"a": "no end}', '{"a": [1, {"b": 2}', '{"a": 1}}', "", '{"a": tru}', '{"a": "line\nbreak"}',
    "{" * 5, "[" * 5000, "x", '{"a": "\\q"}', '{"a": 1} {"b": 1}'])
@pytest.mark.parametrize("between", [",", ",\n  ", "\n, "])
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_a_broken_element_is_passed_over(tmp_path, monkeypatch, broken, between, block):
    monkeypatch.setattr(lines, "BLOCK", block)
    sound = [json.dumps({"a": i, "c": [{"d": i}]}) for i in range(5)]
    path = tmp_path / "rows.json"
    path.write_text("[" + between.join([*sound[:3], broken, *sound[3:]]) + "]")
    found = read(path)
    assert [line.data.decode() for line in found if not line.fault] == sound
    (fault,) = [line for line in found if line.fault]
    assert fault.number == 4
    with pytest.raises((ValueError, RecursionError)):
        json.loads(fault.data)


@pytest.mark.parametrize(("content", "sound", "fault"), [
    ('[{"a": 1}, {"a": 2}', 1, (2, "Expecting ',' or ']' at character 9")),
    ('[{"a": 1}, {"a"', 1, (2, "Expecting ':' delimiter at character 5")),
    ('[{"a": 1},', 1, (2, "the array has no end: is the file cut off?")),
    ('[', 0, (1, "the array has no end: is the file cut off?")),
    ('[{"a": 1},]', 1, (2, "nothing stands after the last comma")),
    ('[{"a": 1}]\n{"a": 2}', 1, (2, "text after the end of the array")),
])
def test_the_end_of_an_array(tmp_path, content, sound, fault):
    path = tmp_path / "rows.json"
    path.write_text(content)
    found = read(path)
    assert [line.fault for line in found[:-1]] == [None] * sound
    assert (found[-1].number, found[-1].fault) == fault


def test_an_element_over_the_limit_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 10_000)
    monkeypatch.setattr(lines, "BLOCK", 100)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": "x" * size} for size in (9_000, 50_000, 10)]))
    assert [(line.number, line.fault) for line in read(path)] == [(1, None), (2, "longer than 0 MB"), (3, None)]


def test_broken_elements_are_not_scanned_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("phicli.dataset.readers.array._SCANNED_IN_VAIN", 10_000)
    path = tmp_path / "rows.json"
    path.write_text("[" + '{"a": 1, "b": [\n' * 900 + "]")  # each leads to the end of all of them
    with pytest.raises(BadInput, match="too many broken elements"):
        read(path)


def test_bytes_and_keys_of_an_element_stay_for_its_parser(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": "\xff"}, {"a": 1, "a": NaN}]')
    assert read(path) == [Line(1, b'{"a": "\xff"}'), Line(2, b'{"a": 1, "a": NaN}')]
    path.write_bytes(codecs.BOM_UTF16_BE + json.dumps(ROWS, ensure_ascii=False).encode("utf-16-be"))
    assert rows_of(path) == ROWS


# Tables

def test_rows_of_a_table_are_numbered_by_the_line_they_begin_in(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\r\nprompt,,response\r\na,,"x\r\ny"\r\n\r\n,\rb,1\n1,2,3,4\n"q"q,1,2\nc,\xff,d\n"open,1\n2,3')
    assert [(line.number, line.data) for line in read(path) if not line.fault] == [
        (3, b'{"prompt": "a", "column 2": "", "response": "x\\ny"}'),
        (10, b'{"prompt": "c", "column 2": "\xff", "response": "d"}')]
    assert faults(path) == [
        (6, "cells: 2, columns: 3"), (7, "cells: 2, columns: 3"), (8, "cells: 4, columns: 3"),
        (9, "wrong quotation marks: ',' expected after '\"'"), (11, "wrong quotation marks: unexpected end of data"),
        (12, "cells: 2, columns: 3")]


def test_a_cell_may_be_long(tmp_path):
    usual = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text(f'a,b\n1,"{"long " * 100_000}"\n2,x\n')
    with open_rows(path) as reader:
        for line, length in zip(reader, (500_000, 1), strict=True):
            assert len(json.loads(line.data)["b"]) == length
            assert csv.field_size_limit() == usual


@pytest.mark.parametrize("stray", ['2,"5 inches', '2,"', '"2,3', '"""2,3'])
@pytest.mark.parametrize("rows", [['3,4'] * 50, ['"3",4', '3,"4, ""5"""'] * 25, ['3,"two\nlines"'] * 50])
def test_a_stray_quotation_mark_costs_its_line_only(tmp_path, monkeypatch, stray, rows):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["a,b", "1,2", stray, *rows]) + "\n")
    for most in (1 << 17, 10):
        monkeypatch.setattr("phicli.dataset.readers.table.MOST_LINES", most)
        (fault,) = faults(path)
        assert fault[0] == 3 and "quotation" in fault[1]
        assert len(read(path)) == 52


class CountingReader(TableReader):
    taken = 0

    def _take(self):
        self.taken += 1
        return super()._take()


def test_stray_quotation_marks_make_no_line_be_read_many_times(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + '"""x,2\n' * 1000 + '""x,"\n' * 1000 + '2,"x\n3,"x"\n' * 1000 + "3,4\n" * 50_000)
    reader = CountingReader(path)
    assert sum(not line.fault for line in reader) >= 50_000
    assert reader.taken < 3 * len(path.read_text().splitlines())


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(BadInput, match="two columns are called 'a'"):
        read(tmp_path / "rows.csv")
    table = pa.table([[1], [2]], names=["a", "a"])
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(BadInput, match="two columns have the same name"):
        read(tmp_path / "rows.parquet")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's commands")
@pytest.mark.parametrize(("text", "names"), [
    ("q,a,a,a 2,a\nw,x,y,z,1\n", ["q", "a", "a 3", "a 2", "a 4"]),
    ("sep=;\n'q & \"a\";x;x\nw;x;y\n", ["'q & \"a\"", "x", "x 2"]),
    ("\ufeff\nq\tit's\tit's\r\nw\tx\ty\r\n", ["q", "it's", "it's 2"]),
])
def test_two_columns_of_one_name_come_with_the_command_that_gives_them_others(tmp_path, monkeypatch, text, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my table.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(BadInput, match="two columns are called") as caught:
        read("my table.csv")
    subprocess.run(caught.value.hint, shell=True, check=True)
    (row,) = rows_of("rows.csv")
    assert list(row) == names and list(row.values())[:3] == ["w", "x", "y"]


def test_what_no_command_gives_names_says_so_too(tmp_path):
    for name, content in (("a.csv.gz", gzip.compress(b"a,a\n1,2\n")), ("b.csv", b"sep=;\na,b;a,b\n1;2\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="two columns are called") as caught:
            read(tmp_path / name)
        assert caught.value.hint == "give each a name of its own"


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's commands")
@pytest.mark.parametrize(("text", "names"), [
    ("What is it?;It is tea.\nWhat else?;Cake.\n", ["prompt", "response"]),
    ("\ufeffWhat is it?\tIt is tea.\nWhat else?\tCake.\n", ["prompt", "response"]),
    ("It is tea.\nIt is cake.\n", ["text"]),
    ("1,What is it?,It is tea.\n2,What?,Cake\n", ["prompt", "response", "column 3"]),
])
def test_a_table_without_names_comes_with_the_command_that_puts_them_there(tmp_path, monkeypatch, text, names):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="the first line seems to be a row") as caught:
        load_rows(path.name, RowParser())
    report = phicli.inspect(path.name, model="tiny")
    assert report["rows"] == 0 and "the first line seems to be a row" in report["warnings"][0]["message"]
    command = caught.value.message.partition("names before it: ")[2]
    assert command and report["warnings"][0]["message"].endswith(command)
    subprocess.run(command, shell=True, check=True)
    found = rows_of("rows.csv")
    assert len(found) == 2 and list(found[0]) == names and "\ufeff" not in "".join(found[0].values())


def test_a_question_as_the_name_of_a_column_is_a_name(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("What do you ask?,And you say.\nTea?,Yes.\n")
    (row,) = load_rows(path, RowParser(columns=["prompt=What do you ask?", "response=And you say."]))
    assert [message["content"] for message in row.messages] == ["Tea?", "Yes."]


# Parquet and Arrow

@pytest.mark.parametrize("write", [
    lambda data, path: data.to_parquet(path), lambda data, path: pa.feather.write_feather(data.data.table, str(path))])
def test_nested_columns_become_json(tmp_path, write):
    write(Dataset.from_list(CHATS), tmp_path / "rows")
    assert rows_of(tmp_path / "rows") == CHATS


def test_what_json_does_not_have_becomes_text(tmp_path):
    day = datetime.datetime(2026, 11, 27, 10, 30, tzinfo=datetime.UTC)
    table = pa.table({
        "day": [day], "price": [decimal.Decimal("1.50")], "bytes": [b"caf\xc3\xa9"], "score": [float("nan")],
        "nested": [[{"at": day.date(), "of": float("inf")}]], "kind": pa.array(["a"]).dictionary_encode()})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet") == [{
        "day": "2026-11-27T10:30:00+00:00", "price": "1.50", "bytes": "café", "score": None,
        "nested": [{"at": "2026-11-27", "of": None}], "kind": "a"}]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_text_that_is_no_utf8_is_a_fault_of_its_row(tmp_path, name):
    spoilt = [b"caf\xe9" if i == 70 else b"caf\xc3\xa9" for i in range(100)]
    table = pa.table({"text": pa.array(spoilt, pa.binary()).view(pa.string())})
    (pa.parquet.write_table if name.endswith("t") else pa.feather.write_feather)(table, str(tmp_path / name))
    ((number, fault),) = faults(tmp_path / name)
    assert number == 71 and "UTF" in fault
    assert len(read(tmp_path / name)) == 100


@pytest.mark.parametrize("name", ["rows.parquet", "file.feather", "stream.arrow"])
def test_damaged_columnar_files_give_rows_or_are_refused(tmp_path, name):
    path = tmp_path / name
    WRITERS[name][1](path)
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for case in range(150):
        spoilt = bytearray(whole[: chance.randrange(8, len(whole))] if case % 3 == 0 else whole)
        for _ in range(1 + case % 4):
            spoilt[chance.randrange(8, len(spoilt))] = chance.randrange(256)
        path.write_bytes(spoilt)
        try:
            assert all(isinstance(line, Line) for line in read(path))
        except BadInput as e:
            refused += 1
            assert e.where == str(path) and "damaged" in e.message
    assert refused > 50


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow"])
def test_no_room_to_unpack_is_said(tmp_path, monkeypatch, name):
    WRITERS[name][1](tmp_path / name)
    monkeypatch.setattr("phicli.dataset.streams.SHARE_OF_ROOM", 0)
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    with pytest.raises(Missing, match="no room"):
        read(path)


# Memory

MEASURED = """
import resource, sys
from phicli.dataset.formats import open_rows
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_rows(sys.argv[1]) as reader:
    count = sum(1 for line in reader if not line.fault)
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize(("name", "limit"), [("big.json", 60), ("big.parquet", 150), ("big.csv", 60)])
def test_memory_stays_bounded(tmp_path, name, limit):
    path, count = tmp_path / name, 200_000
    text = "There é 🙂 " * 90
    if name == "big.parquet":
        columns = {"prompt": [f"Where, {i}?" for i in range(count)], "response": [f"{i}{text}" for i in range(count)]}
        table = pa.table(columns)
        pa.parquet.write_table(table, path, row_group_size=count, compression="none", use_dictionary=False)
    else:
        head, row, tail = ("[", '{"prompt": "Where, %d?", "response": "%s"},\n', "{}]") if name == "big.json" else (
            "prompt,response\n", "Where %d?,%s\n", "1,2\n")
        with path.open("w", encoding="utf-8") as file:
            file.write(head)
            file.writelines(row % (i, text) for i in range(count - 1))
            file.write(tail)
    assert path.stat().st_size > 200 << 20
    done = subprocess.run([sys.executable, "-c", MEASURED, path], capture_output=True, check=True, text=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == count and grown < limit  # megabytes


def test_a_table_as_excel_leaves_it(tmp_path):
    file = tmp_path / "excel.csv"
    file.write_text('sep=;\nQuestion;Answer\nWhere;"There; left"\n;\n;\n', encoding="utf-8-sig")
    with open_rows(file) as rows:
        assert [json.loads(row.data) for row in rows] == [{"Question": "Where", "Answer": "There; left"}]
