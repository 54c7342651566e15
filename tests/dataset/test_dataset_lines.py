"""Lines of bytes from any file: endings, encodings, compression, limits."""

import codecs
import gzip
import os
import subprocess
import sys

import pytest

from phicli.dataset import lines
from phicli.dataset.lines import Line, LineReader
from phicli.errors import BadInput

TEXT = 'a é\n\n日本 🙂\r\nlast'


def read(path):
    with LineReader(path) as reader:
        return list(reader)


def refused(path):
    with pytest.raises(BadInput) as caught:
        read(path)
    return caught.value


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_every_ending_at_every_block_edge(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lines, "BLOCK", block)
    path = tmp_path / "x"
    path.write_bytes(b"one\ntwo\r\nthree\rfour\r\r\n\nsix\r")
    assert read(path) == [
        Line(1, b"one", b"\n"), Line(2, b"two", b"\r\n"), Line(3, b"three", b"\r"), Line(4, b"four", b"\r"),
        Line(5, b"", b"\r\n"), Line(6, b"", b"\n"), Line(7, b"six", b"\r"),
    ]


def test_last_line_without_ending(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a\nb")
    assert read(path)[-1] == Line(2, b"b", b"")


def test_line_separator_inside_a_string_is_no_line_ending(tmp_path):
    path = tmp_path / "x"
    path.write_text("a\u2028b\x85c\x0bd\n", encoding="utf-8")
    assert len(read(path)) == 1


@pytest.mark.parametrize(("encoding", "bom"), [
    ("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE),
    ("utf-32-le", codecs.BOM_UTF32_LE), ("utf-32-be", codecs.BOM_UTF32_BE), ("utf-16-le", b""), ("utf-16-be", b""),
])
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_encodings_come_out_as_utf8(tmp_path, monkeypatch, encoding, bom, block):
    text = "plain ASCII first, as in JSON\n" + TEXT
    path = tmp_path / "x"
    path.write_bytes(bom + text.encode(encoding))
    if block < 8 and not bom and encoding != "utf-8":
        block = 64  # without a mark it takes some characters to know
    monkeypatch.setattr(lines, "BLOCK", block)
    with LineReader(path) as reader:
        assert b"".join(line.data + line.ending for line in reader) == text.encode("utf-8")
        assert (reader.encoding, reader.bom) == (encoding, bool(bom))


def test_cut_utf16_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(codecs.BOM_UTF16_LE + "abc".encode("utf-16-le")[:-1])
    assert "not valid UTF-16-LE" in refused(path).message


def test_gzip_is_known_by_its_content(tmp_path):
    path = tmp_path / "no-suffix"
    path.write_bytes(gzip.compress(TEXT.encode()))
    with LineReader(path) as reader:
        assert [line.data.decode() for line in reader] == ["a é", "", "日本 🙂", "last"]
        assert reader.done == reader.size == path.stat().st_size


@pytest.mark.parametrize("spoil", [lambda data: data[:-12], lambda data: data[:20] + b"\xff\xff\xff" + data[23:]])
def test_damaged_gzip_is_refused(tmp_path, spoil):
    path = tmp_path / "x.gz"
    path.write_bytes(spoil(gzip.compress(os.urandom(300).hex().encode())))
    assert refused(path).where == str(path)


@pytest.mark.parametrize(("content", "what"), [
    (b"SQLite format 3\0", "SQLite"), (b"PK\x03\x04\x14\x00", "zip"), (b"{\"a\": \"\x00\x01\x02\"}", "binary")])
def test_binary_is_refused_and_named(tmp_path, content, what):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    assert what in refused(path).message


def test_what_is_no_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none").message
    assert "folder" in refused(tmp_path).message
    assert "cannot be read" in refused("a\0b").message


def test_line_over_the_limit_is_refused_with_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    monkeypatch.setattr(lines, "BLOCK", 100)
    path = tmp_path / "x"
    path.write_bytes(b"short\n" + b"x" * 990 + b"\n" + b"y" * 100_000)
    assert refused(path).where == f"{path}:3"


def test_stdin():
    code = "from phicli.dataset.lines import LineReader\nwith LineReader('-') as r: print([x.data for x in r], r.size)"
    done = subprocess.run([sys.executable, "-c", code], input=b"a\nb\n", capture_output=True, check=True)
    assert done.stdout.strip() == b"[b'a', b'b'] None"
