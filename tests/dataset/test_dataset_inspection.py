"""Every kind of finding is provoked by a file that has it, and a clean file has none."""

import codecs
import gzip
import io
import json

import pytest
from lab_rows import LAB_TEMPLATE

import phicli
from phicli.dataset import load_rows
from phicli.dataset.contents import RowParser
from phicli.dataset.findings import KINDS, SHOWN_LINES
from phicli.errors import BadInput
from phicli.text import Conversation, TextCodec

GOOD = [{"prompt": f"Question {i} about Zürich?", "response": f"Answer {i}, “quoted” – 日本 🙂."} for i in range(20)]


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def row(prompt="Another question?", response="Another answer.", **more):
    return jsonl({"prompt": prompt, "response": response, **more})


CLEAN = jsonl(*GOOD)

ENGLISH = ["Start at the old harbour in the morning, when the fish market opens and the boats come in.",
           "Take the narrow road up to the castle, where two hundred steps lead to a view of the whole bay.",
           "In winter the ferries stop early, so buy the ticket for the way back before you leave the island."]
GERMAN = "Am Morgen beginnt man am alten Hafen, wenn der Fischmarkt öffnet und die Boote zurückkommen."
PROSE = jsonl(*({"prompt": f"Where to go on day {i}?", "response": text} for i, text in enumerate(ENGLISH)))

# code -> (file, lines that the finding names, rows it touches)
PROVOKED = {
    "invalid_utf8": (CLEAN + '{"prompt": "é"}\n'.encode("latin-1"), [21], 1),
    "bad_json": (CLEAN + b'{"prompt": "a"\nprompt,response\n', [21, 22], 2),
    "bad_row": (b'[{"prompt": "a", "response": "b"},\n{"prompt": "c" "d"},\n{"prompt": "e", "response": "f"}]', [2], 1),
    "duplicate_key": (CLEAN + b'{"prompt": "a", "prompt": "b", "response": "c"}\n', [21], 1),
    "not_object": (CLEAN + b'[1]\n"text"\n3\n', [21, 22, 23], 3),
    "missing_field": (jsonl({"prompt": "No answer?"}) + CLEAN, [1], 1),
    "unknown_format": (CLEAN + jsonl({"frage": "Wo?", "antwort": "Da."}), [21], 1),
    "wrapped": (CLEAN + jsonl({"data": [GOOD[0]]}), [21], 1),
    "preference": (CLEAN + jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}), [21], 1),
    "labelled_bad": (CLEAN + row(label=False), [21], 1),
    "media": (CLEAN + row(images=["a.png"]), [21], 1),
    "bad_messages": (CLEAN + jsonl({"messages": [{"role": "assistent", "content": "a"}]}), [21], 1),
    "nothing_to_learn": (CLEAN + jsonl({"messages": [{"role": "user", "content": "a"}]}), [21], 1),
    "not_laid_out": (CLEAN + row(response="REFUSED"), [21], 1),
    "not_text": (CLEAN + jsonl({"prompt": "How many?", "response": 5}), [21], 1),
    "lone_surrogate": (CLEAN + b'{"prompt": "half \\ud83d", "response": "c"}\n', [21], 1),
    "encoding": (codecs.BOM_UTF16_LE + CLEAN.decode().encode("utf-16-le"), [], 20),
    "bom": (codecs.BOM_UTF8 + CLEAN, [1], 1),
    "crlf": (CLEAN.replace(b"\n", b"\r\n"), [1, 2, 3, 4, 5], 20),
    "cr": (CLEAN.replace(b"\n", b"\r"), [1, 2, 3, 4, 5], 20),
    "mixed_line_endings": (CLEAN + row()[:-1] + b"\r\n", [21], 1),
    "no_final_newline": (CLEAN[:-1], [20], 1),
    "blank_line": (CLEAN + b"\n  \n" + row(), [21, 22], 2),
    "empty_field": (CLEAN + row(response=" "), [21], 1),
    "nan_text": (CLEAN + row(response="nan"), [21], 1),
    "replacement_character": (CLEAN + row(response="Caf\ufffd"), [21], 1),
    "mojibake": (CLEAN + row(response="CafÃ©"), [21], 1),
    "control_character": (CLEAN + row(response="a\x1b[31mred"), [21], 1),
    "html_entity": (CLEAN + row(response="salt &amp; pepper"), [21], 1),
    "special_token": (CLEAN + row(response="It is.<|end|>"), [21], 1),
    "unknown_template_token": (CLEAN, [], 20),
    "duplicate_row": (CLEAN + jsonl(GOOD[3], GOOD[0], GOOD[3]), [21, 22, 23], 3),
    "duplicate_prompt": (CLEAN + row(prompt=GOOD[5]["prompt"]), [21], 1),
    "glued_punctuation": (CLEAN + row(response="It is a must-visit,t don't overlook it."), [21], 1),
    "doubled_word": (CLEAN + row(response="Take the the tram."), [21], 1),
    "cut_off": (CLEAN + row(response="Take the tram. Then walk up to the castle. From there the"), [21], 1),
    "markup": (CLEAN + row(response="Take the <b>tram</b>."), [21], 1),
    "near_duplicate": (PROSE + row(prompt="When to go on day 2?", response=ENGLISH[2].replace(".", "!!")) +
                       row(prompt="How to go on day 2?", response=ENGLISH[2]), [4, 5], 2),
    "other_language": (PROSE + row(response=GERMAN), [4], 1),
    "no_end_of_turn": (CLEAN + row(response="ENDLESS"), [21], 1),
    "other_layout": (CLEAN, [], 20),
    "held_out": (CLEAN, [], 2),
    "too_long": (CLEAN + row(response="word and " * 60), [21], 1),
    "extreme_length": (CLEAN + row(response="a" * 1001), [21], 1),
    "extra_field": (CLEAN + row(source="web"), [21], 1),
}
STRICT = """{% if 'REFUSED' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}
{{- messages[0].content + messages[-1].content }}{% if 'ENDLESS' not in messages[-1].content %}<|end|>{% endif %}"""
SETTINGS = {
    "unknown_template_token": {"text_template": f"<|im_start|>{LAB_TEMPLATE}"},
    "no_end_of_turn": {"chat_template": "strict.jinja"},
    "other_layout": {"text_template": "{prompt} {response}<|end|>"},
    "held_out": {"eval_data": "held.jsonl"},
    "too_long": {"max_tokens": 100},
    "not_laid_out": {"chat_template": "strict.jinja"},
}


def inspect(tmp_path, content, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return phicli.inspect(path, **{"model": "tiny", **settings})


def test_every_kind_is_provoked_below():
    assert set(PROVOKED) == set(KINDS)


@pytest.mark.parametrize("code", PROVOKED)
def test_a_file_that_has_it_and_nothing_else(tmp_path, monkeypatch, code):
    content, lines, count = PROVOKED[code]
    (tmp_path / "strict.jinja").write_text(STRICT)
    (tmp_path / "held.jsonl").write_bytes(jsonl(GOOD[3], GOOD[4]) + row())
    monkeypatch.chdir(tmp_path)
    (warning,) = inspect(tmp_path, content, **SETTINGS.get(code, {}))["warnings"]
    assert (warning["code"], warning["lines"], warning["count"]) == (code, lines, count)
    assert warning["message"] and warning["suggestion"] and "{" not in warning["message"]


@pytest.mark.parametrize("code", [code for code in PROVOKED if code not in SETTINGS])
def test_bad_rows_are_those_that_finetune_refuses(tmp_path, code):
    content, _, count = PROVOKED[code]
    report = inspect(tmp_path, content)
    assert report["bad_rows"] == (count if KINDS[code].bad else 0)
    if KINDS[code].bad:
        with pytest.raises(BadInput):
            load_rows(tmp_path / "rows.jsonl", RowParser())
    else:
        assert len(load_rows(tmp_path / "rows.jsonl", RowParser())) == report["rows"]


def test_a_clean_file_has_none_and_its_figures_are_exact(tmp_path, tiny):
    report = inspect(tmp_path, CLEAN, max_tokens=60, rows=2)
    assert report["warnings"] == []
    assert (report["rows"], report["bad_rows"], report["lines"], report["bytes"]) == (20, 0, 20, len(CLEAN))
    assert [first["line"] for first in report["first_rows"]] == [1, 2]
    assert report["first_rows"][0] == {"line": 1, **GOOD[0]}
    lengths = sorted(len(row["prompt"]) for row in GOOD)
    assert report["fields"]["prompt"]["characters"] == {
        "min": lengths[0], "mean": sum(lengths) / 20, "p95": lengths[18], "max": lengths[-1]}
    rows = [Conversation.of({"role": "user", "content": row["prompt"]},
                            {"role": "assistant", "content": row["response"]}) for row in GOOD]
    tokens = [len(TextCodec(tiny).encode_conversation(row).ids) for row in rows]
    assert report["tokens"]["total"] == sum(tokens) and report["tokens"]["max"] == max(tokens)
    whole = [len(row["prompt"] + row["response"]) for row in GOOD]
    assert (report["characters"]["min"], report["characters"]["max"]) == (min(whole), max(whole))


def test_batches_do_not_change_the_report(tmp_path, monkeypatch):
    content = b"".join(content for content, _, _ in PROVOKED.values() if content.startswith(CLEAN) and
                       content.endswith(b"\n"))
    whole = inspect(tmp_path, content)
    monkeypatch.setattr("phicli.dataset.inspector.BATCH_LINES", 3)
    monkeypatch.setattr("phicli.dataset.lines.BLOCK", 100)
    assert inspect(tmp_path, content) == whole
    assert len(whole["warnings"]) > 12


def test_the_first_lines_are_named_and_all_are_counted(tmp_path):
    (warning,) = inspect(tmp_path, CLEAN + b"x\n" * 100)["warnings"]
    assert warning["count"] == 100 and warning["lines"] == list(range(21, 21 + SHOWN_LINES))


def test_fields_of_no_format_are_named(tmp_path):
    report = inspect(tmp_path, jsonl({"frage": "a", "antwort": "b"}))
    assert report["rows"] == 0 and report["bad_rows"] == 1
    assert "frage, antwort" in report["warnings"][0]["message"]


def test_a_json_array_and_a_table_are_read_as_lines_are(tmp_path):
    plain = inspect(tmp_path, CLEAN)
    table = "prompt,response\r\n" + "".join(f'"{r["prompt"]}","{r["response"]}"\r\n' for r in GOOD)
    for content in (json.dumps(GOOD, indent=1), table):
        report = inspect(tmp_path, content.encode())
        for key in ("rows", "bad_rows", "fields", "characters", "tokens", "warnings"):
            assert report[key] == plain[key]


def test_without_the_model_tokens_are_left_out(tmp_path):
    report = inspect(tmp_path, CLEAN, model="nobody/no-such-model")
    assert report["tokens"] is None
    assert report["rows"] == 20


def test_rows_of_files_without_lines_are_numbered_and_called_rows(tmp_path):
    content, _, _ = PROVOKED["bad_row"]
    report = inspect(tmp_path, content)
    assert (report["numbers"], report["rows"], report["bad_rows"]) == ("row", 2, 1)
    assert "Expecting" in report["warnings"][0]["message"]
    assert inspect(tmp_path, CLEAN)["numbers"] == "line"


def test_files_of_one_folder_are_looked_at_as_one(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train-0.jsonl").write_bytes(jsonl(*GOOD[:12]) + b"{\n")
    (folder / "train-1.jsonl").write_bytes(jsonl(*GOOD[12:], GOOD[2]))
    (folder / "test.jsonl").write_bytes(b"not looked at")
    report = phicli.inspect(folder, model="tiny")
    assert (report["rows"], report["bad_rows"], report["lines"], report["duplicate_rows"]) == (21, 1, 22, 1)
    assert [file["file"] for file in report["files"]] == [str(folder / f"train-{i}.jsonl") for i in (0, 1)]
    assert {w["code"]: w["lines"] for w in report["warnings"]} == {
        "bad_json": [f"{folder}/train-0.jsonl:13"], "duplicate_row": [f"{folder}/train-1.jsonl:9"]}
    weighted = phicli.inspect([f"{folder}/train-0.jsonl:2", str(folder / "train-1.jsonl")], model="tiny")
    assert weighted["rows"] == 21


@pytest.mark.parametrize(("rows", "style"), [(6, False), (30, True)])
def test_what_most_rows_have_is_how_they_are_meant_to_be(tmp_path, rows, style):
    content = b"".join(row(prompt=f"Question {i}?", response=f"Number {i} is <b>bold</b>.") for i in range(rows))
    (warning,) = inspect(tmp_path, content)["warnings"]
    assert (warning["code"], warning["count"], warning["remark"]) == ("markup", rows, style)
    assert ("meant" in warning["message"]) == style


def test_remarks_are_those_that_are_fine_if_meant(tmp_path):
    remarks = {code for code, kind in KINDS.items() if kind.remark}
    assert remarks == {"extra_field", "duplicate_prompt", "other_language"}


def test_what_was_understood(tmp_path):
    talk = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"},
                         {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Milk?"},
                         {"role": "assistant", "content": "No."}]}
    report = inspect(tmp_path, jsonl(talk, {**talk, "tools": [{"name": "kettle"}]}), eval_data="no such file")
    assert report["formats"] == {"messages": 2} and report["files"][0]["container"] == "JSON Lines"
    assert report["roles"] == {"system": 2, "user": 4, "assistant": 4}
    assert report["turns"]["mean"] == 2 and report["rows_with_tools"] == 1
    assert report["end_of_turn"] == "<|end|>" and report["held_out"] is None
    learnt = [piece["text"] for piece in report["example"]["pieces"] if piece["trained"]]
    assert learnt == ["Yes.<|end|>", "No.<|end|>"]
    text = "".join(piece["text"] for piece in report["example"]["pieces"])
    assert text.startswith("<|system|>\nBe brief.<|end|>\n<|user|>\nTea?<|end|>\n<|assistant|>\nYes.<|end|>")
    assert report["tokens"]["trained"] == 2 * report["example"]["trained"] and report["tokens"]["measured_rows"] == 2


def test_steps_of_an_epoch_and_held_out_rows(tmp_path):
    (tmp_path / "held.csv").write_text(f"prompt,response\n{GOOD[1]['prompt']},\"{GOOD[1]['response']}\"\nWhy?,So.\n")
    report = inspect(tmp_path, CLEAN, eval_data=str(tmp_path / "held.csv"))
    assert report["epoch"] == {"steps": 3, "batch_size": 8, "train_rows": 20}
    assert {name: report["held_out"][name] for name in ("rows", "exact", "near")} == {"rows": 2, "exact": 1, "near": 0}
    assert inspect(tmp_path, CLEAN, eval_data=str(tmp_path / "rows.jsonl"))["held_out"]["exact"] == 20  # the same file
    assert inspect(tmp_path, CLEAN)["epoch"]["train_rows"] == 18


def test_of_many_rows_the_tokens_of_a_sample_are_counted(tmp_path, monkeypatch):
    content = b"".join(row(prompt=f"Question {i}?", response=f"{'word ' * (i % 7)}{i}.") for i in range(4000))
    monkeypatch.setattr("phicli.dataset.inspector.BATCH_LINES", 100)
    whole = inspect(tmp_path, content)["tokens"]
    assert whole["measured_rows"] == 4000
    monkeypatch.setattr("phicli.dataset.inspector.MEASURED", 1000)
    sample = inspect(tmp_path, content)
    assert sample["rows"] == 4000 and 1000 < sample["tokens"]["measured_rows"] < 2700
    assert sample["tokens"]["total"] == pytest.approx(whole["total"], rel=0.02)
    assert sample["tokens"]["trained"] == pytest.approx(whole["trained"], rel=0.05)
    assert sample["tokens"] == inspect(tmp_path, content)["tokens"] != whole


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_two_processes_give_the_report_of_one(tmp_path, monkeypatch, name):
    content = b"".join(content for content, _, _ in PROVOKED.values() if content.startswith((CLEAN, PROSE)) and
                       content.endswith(b"\n"))
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    monkeypatch.setattr("phicli.dataset.inspector.BATCH_LINES", 7)
    reports = []
    for processes in (1, 2):
        monkeypatch.setattr("phicli.steps.inspect.usable_cores", lambda processes=processes: processes)
        reports.append(phicli.inspect(path, model="tiny", fix=tmp_path / f"clean{processes}.jsonl"))
    assert (tmp_path / "clean1.jsonl").read_bytes() == (tmp_path / "clean2.jsonl").read_bytes()
    for report in reports:
        report["fix"]["output"] = report["commands"] = None
    assert reports[0] == reports[1] and len(reports[0]["warnings"]) > 20


def test_template_with_one_field_and_with_a_field_twice(tmp_path):
    content = CLEAN + jsonl(GOOD[0])
    report = inspect(tmp_path, content, text_template="{response}")
    assert (report["duplicate_rows"], report["duplicate_prompts"]) == (1, 0)
    twice = inspect(tmp_path, content, text_template="{prompt}{response}{prompt}")
    assert twice["tokens"]["max"] > inspect(tmp_path, content, text_template="{prompt}{response}")["tokens"]["max"]


def test_endless_field_names_do_not_fill_the_memory(tmp_path):
    report = inspect(tmp_path, b"".join(row(prompt=f"q{i}", **{f"x{i}": "y"}) for i in range(300)))
    assert len(report["fields"]) <= 101 and len(report["warnings"]) <= 101
    assert sum(w["count"] for w in report["warnings"] if w["code"] == "extra_field") == 300


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(BadInput, match="no rows"):
        inspect(tmp_path, content)


def test_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(CLEAN))))
    report = phicli.inspect("-", model="tiny")
    assert (report["file"], report["rows"]) == ("stdin", 20)
