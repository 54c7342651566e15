"""The clean copy: restored, complete, without what cannot be used, and never half."""

import codecs
import gzip
import json
import os
from pathlib import Path

import pytest
from lab_rows import LAB_TEMPLATE, UNDER_IT

import phicli
from phicli.dataset import load_rows
from phicli.dataset.contents import RowParser
from phicli.errors import BadInput, Missing, UsageError

GOOD = b'{"prompt":  "Sound?", "response": "Yes \\u00e9.", "id": 1.10}\n'


def clean(tmp_path, content, out="out.jsonl"):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(content)
    out = tmp_path / out
    report = phicli.inspect(source, model="tiny", text_template=LAB_TEMPLATE, fix=out)
    return report["fix"], out


def row(prompt, response):
    return json.dumps({"prompt": prompt, "response": response}).encode() + b"\n"


def test_sound_rows_keep_their_bytes(tmp_path):
    fix, out = clean(tmp_path, GOOD)
    assert out.read_bytes() == GOOD
    assert fix == {"output": str(out), "rows": 1, "rewritten": 0, "changed": {}, "dropped": {}}


def kept(tmp_path, content, **settings):
    """The clean copy of rows whose format is found by their fields."""
    source, out = tmp_path / settings.pop("name", "rows.jsonl"), tmp_path / "out.jsonl"
    source.write_bytes(content)
    return phicli.inspect(source, model="tiny", fix=out, **settings)["fix"], out.read_bytes()


def test_the_travel_data_come_out_byte_for_byte(tmp_path):
    content = (Path(__file__).parents[2] / "data" / "data_sample_travel.jsonl").read_bytes()
    fix, out = kept(tmp_path, content)
    assert out == content and (fix["rewritten"], fix["changed"]) == (0, {})


MORE = {"id": 7, "source": "a &amp; b", "weight": 0.5}
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Salt?"}]
SHAPES = [
    lambda text: {"prompt": "Salt?", "response": text},
    lambda text: {"instruction": "Salt?", "input": "", "output": text, "history": [["Hi &amp; hello", "Yes."]]},
    lambda text: {"messages": [*TURNS, {"role": "assistant", "content": text, "weight": 1, "note": "a &amp; b"}]},
    lambda text: {"messages": [*TURNS, {"role": "assistant", "content": [{"type": "text", "text": text}]}]},
    lambda text: {"prompt": TURNS, "completion": [{"role": "assistant", "content": text}]},
    lambda text: {"system": "Be kind.", "conversations": [{"from": "human", "value": "Salt?"},
                                                          {"from": "gpt", "value": text}], "tools": "[]"},
    lambda text: {"text": text},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_keeps_its_shape_and_its_other_fields(tmp_path, shape):
    sound, broken, mended = ({**shape(text), **MORE} for text in ("Yes, do.", "Salt &amp; pepper.", "Salt & pepper."))
    if "history" in mended:
        sound["history"], mended["history"] = [["Hi", "Yes."]], [["Hi & hello", "Yes."]]
    lines = [b"  " + json.dumps(row).encode() + b"\n" for row in (sound, broken)]
    fix, out = kept(tmp_path, b"".join(lines))
    assert out.startswith(lines[0]) and json.loads(out[len(lines[0]):]) == mended
    assert (fix["rewritten"], fix["changed"]) == (1, {"html_entity": 1})


@pytest.mark.parametrize("broken", ["1 &amp; 2", 5])
def test_a_named_field_keeps_its_name(tmp_path, broken):
    row = {"frage": "Salt?", "antwort": broken, "id": "a &amp; b", "n": "half \ud83d"}
    _, out = kept(tmp_path, json.dumps(row).encode() + b"\n", columns=("prompt=frage", "response=antwort"))
    assert json.loads(out) == {**row, "antwort": "5" if broken == 5 else "1 & 2"}


def test_a_table_keeps_its_columns(tmp_path):
    fix, out = kept(tmp_path, b"id,question,answer\n1,Salt?,Yes.\n2,Both?,Salt &amp; pepper.\n", name="rows.csv")
    assert list(map(json.loads, out.splitlines())) == [{"id": "1", "question": "Salt?", "answer": "Yes."},
                                                       {"id": "2", "question": "Both?", "answer": "Salt & pepper."}]
    assert (fix["rows"], fix["rewritten"]) == (2, 1)


@pytest.mark.parametrize(("line", "code", "response"), [
    (row("a", "CafÃ©"), "mojibake", "Café"),
    (row("a", "salt &amp; pepper"), "html_entity", "salt & pepper"),
    (row("a", "b\x00c\r\nd"), "control_character", "bc\nd"),
    (row("a", 5), "not_text", "5"),
    ('{"prompt": "a", "response": "Café"}\n'.encode("cp1252"), "invalid_utf8", "Café"),
])
def test_what_is_restored(tmp_path, line, code, response):
    fix, out = clean(tmp_path, GOOD + line)
    assert fix["changed"] == {code: 1} and fix["dropped"] == {} and fix["rows"] == 2
    assert load_rows(out, UNDER_IT)[1].fields == {"prompt": "a", "response": response}


@pytest.mark.parametrize(("line", "code"), [
    (b"{broken\n", "bad_json"), (b"[]\n", "not_object"), (b'{"prompt": "a"}\n', "missing_field"),
    (row("a", None), "not_text"), (row("a", True), "not_text"), (row("a", float("nan")), "bad_json"),
    (row("a", "half \ud83d"), "lone_surrogate"), (row("a", " "), "empty_field"), (row("a", "nan"), "nan_text"),
    (row("a", "caf\ufffd"), "replacement_character"), (GOOD, "duplicate_row"),
    (row("Sound? ", "Yes &eacute;."), "duplicate_row"),  # only once it is restored
    (b'{"prompt": "a", "response": "\xc3\xa9 and half of one: \xc3"}\n', "invalid_utf8"),
])
def test_what_is_left_out(tmp_path, line, code):
    fix, out = clean(tmp_path, GOOD + line)
    assert fix["dropped"] == {code: 1} and fix["rows"] == 1
    assert out.read_bytes() == GOOD


def test_what_the_chat_template_refuses_is_left_out_once_it_is_restored_too(tmp_path):
    (tmp_path / "strict.jinja").write_text("{% if 'é' in messages[-1].content or '5' in messages[-1].content %}"
                                           "{{ raise_exception('no') }}{% endif %}{{ messages[-1].content }}<|end|>")
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(GOOD.replace(b"\\u00e9", b"e") + GOOD + row("b", "CafÃ©") + row("c", 5))
    report = phicli.inspect(source, model="tiny", chat_template=tmp_path / "strict.jinja", fix=out)
    assert report["fix"]["dropped"] == {"not_laid_out": 3} and len(out.read_text().splitlines()) == 1


def test_messages_in_a_cell_of_a_table_are_mended(tmp_path):
    source, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    cell = json.dumps([{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "CafÃ© [1]"}])
    source.write_text('id,messages\n1,"{}"\n'.format(cell.replace('"', '""')), "utf-8")
    assert phicli.inspect(source, model="tiny", fix=out)["fix"]["changed"] == {"mojibake": 1}
    assert [row.messages[1]["content"] for row in load_rows(out, RowParser())] == ["Café [1]"]


def test_of_rows_of_kto_the_good_answers_are_kept(tmp_path):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": f"{i}?", "completion": "a", "label": i < 2} for i in range(5)]
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert phicli.inspect(source, model="tiny", fix=out)["fix"]["dropped"] == {"labelled_bad": 3}
    assert [row.messages[0]["content"] for row in load_rows(out, RowParser())] == ["0?", "1?"]


def test_rows_with_pictures_are_left_out(tmp_path):
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": f"<image>{i}?", "completion": "a", "images": ["a.png"][:i]} for i in range(2)]
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert phicli.inspect(source, model="tiny", fix=out)["fix"]["dropped"] == {"media": 1}
    assert [row.messages[0]["content"] for row in load_rows(out, RowParser())] == ["<image>0?"]


def test_empty_first_field_is_kept(tmp_path):
    fix, _ = clean(tmp_path, row("", "An answer to nothing."))
    assert fix["rows"] == 1 and fix["dropped"] == {}


@pytest.mark.parametrize("response", ["Write `&amp;` and `&lt;`", "```html\nR&amp;D\n```", "<b>R&amp;D</b>"])
def test_entities_that_are_meant_stay(tmp_path, response):
    fix, out = clean(tmp_path, row("q", response) + row("\x00r", response))
    assert [json.loads(line)["response"] for line in out.read_bytes().splitlines()] == [response] * 2
    assert (fix["changed"], fix["dropped"]) == ({"control_character": 1}, {})


@pytest.mark.parametrize(("content", "codes"), [
    (codecs.BOM_UTF8 + GOOD, {"bom": 1}),
    (codecs.BOM_UTF16_BE + GOOD.decode().encode("utf-16-be"), {"encoding": 1}),
    (GOOD.replace(b"\n", b"\r\n"), {"crlf": 1}),
    (b"\n" + GOOD[:-1], {"blank_line": 1, "no_final_newline": 1}),
])
def test_form(tmp_path, content, codes):
    fix, out = clean(tmp_path, content)
    assert out.read_bytes() == GOOD
    assert fix["changed"] == codes


def test_the_clean_copy_of_anything_has_nothing_left_to_fix(tmp_path):
    dirty = codecs.BOM_UTF8 + GOOD + b"".join(
        [row("a", "CafÃ© &amp;\x00"), row("b", "&#0;"), row("c", "&amp; &lt;|end|&gt;"), b"junk\n", row("d", "")])
    _, out = clean(tmp_path, dirty)
    again = phicli.inspect(out, model="tiny", text_template=LAB_TEMPLATE, fix=tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    assert again["fix"]["changed"] == again["fix"]["dropped"] == {}


def test_gz_output(tmp_path):
    _, out = clean(tmp_path, GOOD, "new/out.jsonl.gz")
    assert gzip.decompress(out.read_bytes()) == GOOD


@pytest.mark.parametrize("content", [b"junk\n", row("a", "nan")])
def test_nothing_is_written_where_no_row_is_left(tmp_path, content):
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(BadInput, match="no row is left"):
        clean(tmp_path, content)
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_a_fault_in_the_middle_leaves_the_old_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("phicli.dataset.lines.MAX_LINE", 200)
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(BadInput, match="a line of more than"):
        clean(tmp_path, GOOD + b"x" * 300)
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_never_over_the_input(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "rows.jsonl")
    for name in ("rows.jsonl", "link"):
        with pytest.raises(UsageError, match="its own input"):
            clean(tmp_path, GOOD, name)
    assert (tmp_path / "rows.jsonl").read_bytes() == GOOD


def test_a_device_or_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="no regular file"):
        clean(tmp_path, GOOD, "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(BadInput, match="a folder"):
        clean(tmp_path, GOOD, ".")
    with pytest.raises(Missing, match="cannot be written"):
        clean(tmp_path, GOOD, "rows.jsonl/out")
