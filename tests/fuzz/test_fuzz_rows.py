"""Any bytes as a file of rows, any text as a template, any row under any template."""

import gzip
import json

import pytest
from fuzzing import EXPECTED, fuzzed, mutated, text, to_json, values
from hypothesis import assume
from hypothesis import strategies as st
from lab_rows import LAB_TEMPLATE, UNDER_IT

import phicli
from phicli.dataset import load_rows
from phicli.text import TextCodec, TextTemplate

GOOD = b"".join(json.dumps({"prompt": f"Where is {n}?", "response": "Far <|end|> away, \u65e5\u672c"}).encode() + b"\n"
                for n in range(4))
SEEDS = [GOOD, gzip.compress(GOOD, mtime=0), GOOD.decode().encode("utf-16"), b"\xef\xbb\xbf" + GOOD, b"", b"\n\n"]

rows = st.lists(st.one_of(values, st.fixed_dictionaries({"prompt": text, "response": text}),
                          st.fixed_dictionaries({"prompt": values, "response": values})), max_size=5)
files = st.one_of(st.binary(max_size=200), st.sampled_from(SEEDS).flatmap(mutated),
                  rows.map(lambda found: b"\n".join(map(to_json, found))))
pieces = st.sampled_from(["{prompt}", "{response}", "{role}", "{{", "}}", "{", "}", "<|user|>", "<|end|>", "<|", "|>",
                          "{0}", "{prompt!r}", "{prompt:>9}", "{prompt.__class__}", "{a[0]}", "\\n", "\n", " "])
templates = st.one_of(text, st.lists(st.one_of(pieces, text), max_size=8).map("".join))


@pytest.fixture(scope="module")
def codec(tiny):
    return TextCodec(tiny)


@fuzzed(data=files)
def test_files_of_rows(tmp_path, data):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    try:
        found = load_rows(path, UNDER_IT)
    except EXPECTED as e:
        assert str(path) in str(e)
    else:
        assert found and all(set(row.fields) == {"prompt", "response"} for row in found)


@fuzzed(data=files)
def test_inspection_and_its_clean_copy(tmp_path, data):
    path, clean = tmp_path / "rows.jsonl", tmp_path / "clean.jsonl"
    path.write_bytes(data)
    clean.unlink(missing_ok=True)
    try:
        report = phicli.inspect(path, model="tiny", text_template=LAB_TEMPLATE, fix=clean)
    except EXPECTED:
        assert not clean.exists()
        return
    json.dumps(report)
    assert len(load_rows(clean, UNDER_IT)) == report["fix"]["rows"]


@fuzzed(template=templates, row=st.dictionaries(st.sampled_from(["prompt", "response", "role", "a"]), text))
def test_templates_and_rows(codec, template, row):
    try:
        parsed = TextTemplate(template)
    except EXPECTED:
        return
    assume(set(parsed.fields) <= set(row))
    row = {name: value.encode("utf-8", "replace").decode() for name, value in row.items()}
    encoded = codec.encode_row(parsed, row)
    assert len(encoded.mask) == len(encoded.ids)
    literals = "".join(literal for literal, _ in parsed.parts)
    special = {ident for ident, token in codec.special.values() if token.special}
    own = sum(1 for i in encoded.ids if i in special)
    assert own <= sum(literals.count(name) for name in codec.special)


@fuzzed(first=text.map("x".__add__), second=text)
def test_chat_messages(codec, first, second):
    asked = [{"role": "system", "content": first}, {"role": "user", "content": second}]
    try:
        ids = codec.encode_chat(asked)
    except EXPECTED:
        return
    names = {ident: name for name, (ident, token) in codec.special.items() if token.special}
    assert [names[i] for i in ids if i in names] == ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
