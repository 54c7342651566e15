"""Templates of chat, tokenizers and regular expressions that a stranger made to hang, to fill memory or to crash."""

import base64
import json
import shutil
import sys
import time

import pytest
from lab_rows import LAB_TEMPLATE

from phicli.checkpoints.adapter_settings import check_patterns
from phicli.checkpoints.peft_folder import check_weights
from phicli.errors import BadInput
from phicli.text import TextCodec, TextTemplate

ENDLESS = {
    "nested loops": "{% set r = range(100000) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice":
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "lists in lists": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}"
                      "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "a namespace of them": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}"
                           "{% endfor %}{{ ns }}",
    "dictionaries in dictionaries": "{% set ns = namespace(x=1) %}{% for i in range(99) %}"
                                    "{% set ns.x = dict(a=ns.x, b=ns.x).values() %}{% endfor %}{{ ns.x }}",
    "slices": "{% set r = range(100000) | list %}{% for i in r %}{% set x = r[1:] %}{% endfor %}",
    "powers": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
}
HUGE = {
    "a product": "{{ 'a' * 10**10 }}", "a product of a list": "{{ [1] * 10**10 }}",
    "a width": "{{ '%10000000000d' % 1 }}", "a width for a filter": "{{ '%10000000000d' | format(1) }}",
    "a width given apart": "{{ '%*d' % (10**10, 1) }}", "str.format": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "str.format by its name": "{{ ('{:10000000000}' | attr('format'))(1) }}",
    "center": "{{ 'a' | center(10**10) }}", "ljust": "{{ 'a'.ljust(10**10) }}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 1000000 %}{{ range(100000) | map('string') | join(x) }}",
    "reversed": "{% set x = 'a' * 100000 %}{{ range(100000) | list | reverse | join(x) }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}", "indent": "{{ [[1]] | tojson(indent=10**10) }}",
    "doubling": "{% set ns = namespace(x='abc') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by set": "{% set ns = namespace(x='abc') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}"
                       "{% endset %}{% set ns.x = y %}{% endfor %}",
    "bytes": "{{ (10).to_bytes(10**10) }}",
}
PATTERNS = ["(a+)+$", "(a|aa)+$", "a*a*a*a*a*[cd]", "(?:(?:a{1,30}){1,30}){1,30}$", "(a?){64}b", "(?<x>(a|a)+)+$"]


@pytest.fixture
def folder(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def bounded():
    """The test takes little time and, in the whole process, little more memory than before."""
    resource = pytest.importorskip("resource")
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    yield
    assert time.perf_counter() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << (10 if sys.platform == "linux" else 20)


def refused(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(BadInput, match="chat template: ") as error:
        TextCodec(folder).encode_chat([{"role": "user", "content": "Hello"}])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_templates(folder, bounded, what):
    """A chat template that never ends: stopped within seconds, exit code 3."""
    refused(folder, ENDLESS[what])


@pytest.mark.parametrize("what", HUGE)
def test_templates_that_fill_memory(folder, bounded, what):
    """A chat template that asks for gigabytes: refused before it has them, exit code 3."""
    refused(folder, HUGE[what])


@pytest.mark.parametrize("template", ["{{ messages.__class__.__mro__ }}", "{{ ''.format.__globals__ }}",
                                      "{{ messages[0].content._alphabet }}", "{% include '/etc/passwd' %}",
                                      "{{ raise_exception.__globals__ }}", "{{ strftime_now.__code__.co_code }}"])
def test_templates_that_look_around(folder, template):
    """A chat template that reaches for Python or for files: refused, or it sees nothing."""
    (folder / "chat_template.jinja").write_text(template)
    try:
        assert TextCodec(folder).encode_chat([{"role": "user", "content": "Hello"}]) == []
    except BadInput as e:
        assert "chat template" in str(e)


def with_part(folder, **parts):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | parts), encoding="utf-8")


def splits(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_patterns_of_tokenizers(folder, bounded, part, pattern):
    """A tokenizer whose pattern takes for ever: refused when it is read, exit code 3."""
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"}
    with_part(folder, **{part: {"type": "Sequence", "normalizers": [replace]} if part == "normalizer" else
                         splits(pattern)})
    with pytest.raises(BadInput, match=r"tokenizer\.json: .*regular expression"):
        TextCodec(folder)


def test_growing_rules_of_tokenizers(folder, bounded):
    """A tokenizer whose rules double a text forty times: refused when it is read, exit code 3."""
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    with_part(folder, normalizer={"type": "Sequence", "normalizers": [double] * 40})
    with pytest.raises(BadInput, match="many times longer"):
        TextCodec(folder)


def test_a_tokenizer_that_panics(folder):
    """A tokenizer that panics in its Rust code: one error, exit code 3, no traceback."""
    with_part(folder, pre_tokenizer=splits(r"\s*\s*[^\s]"))
    codec = TextCodec(folder)
    with pytest.raises(BadInput, match="cannot encode a text"):
        codec.encode_text(" " * 200_000)


@pytest.mark.parametrize("blob", [b"\xff" * 4 + b"12345", b"\0" * 4 + b"a" * 10_000, b"", "no base64", 5])
@pytest.mark.parametrize("escaped", [False, True])
def test_maps_of_characters(folder, bounded, blob, escaped):
    """A tokenizer whose map of characters claims gigabytes, makes thousands of one, or is none: exit code 3."""
    value = base64.b64encode(blob).decode() if isinstance(blob, bytes) else blob
    with_part(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": value})
    if escaped:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace("precompiled_charsmap", "\\u0070recompiled_charsmap"))
    with pytest.raises(BadInput, match=r"tokenizer\.json: "):
        TextCodec(folder).encode_text("ab")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": null}', b"[" * 100_000])
def test_damaged_tokenizers(cli, folder, tmp_path, content):
    """A damaged tokenizer.json: its name and what is wrong, exit code 3."""
    (folder / "tokenizer.json").write_bytes(content)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    outcome = cli("inspect", data, "--model", folder)
    assert outcome.code == 3 and "tokenizer.json" in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize("pattern", [*PATTERNS[:5], "(", "a" * 5000])
@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern", "target_modules", "layers_pattern"])
def test_patterns_of_adapters(tmp_path, bounded, setting, pattern):
    """An adapter with a pattern that takes for ever, or that is none: refused before anything matches it, exit code 3.

    Reading its weights matches two of them; the others are peft's, and checked before it is asked.
    """
    value = {pattern: 16} if setting in ("alpha_pattern", "rank_pattern") else pattern
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, setting: value}))
    for check in [check_patterns, *([check_weights] if setting.endswith(("alpha_pattern", "rank_pattern")) else [])]:
        with pytest.raises(BadInput, match=f"{setting}: the regular expression"):
            check(tmp_path)


@pytest.mark.parametrize("mark", ["<|tool|>", "</s>", "<think>", "<｜User｜>", "[INST]", "<|end|>"])
@pytest.mark.parametrize("special", [True, False])
def test_typed_marks(folder, mark, special):
    """A row, a user or a system message that types a control token, marked special or not: characters, no token."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [t for t in document["added_tokens"] if t["content"] != mark]
    ident = next((t["id"] for t in document["added_tokens"] if t["content"] == mark), 4096)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    with_part(folder, added_tokens=sorted([*tokens, {"id": ident, "content": mark, "special": special, **flags}],
                                          key=lambda t: t["id"]))
    codec = TextCodec(folder)
    asked = [{"role": role, "content": f"a {mark} b"} for role in ("system", "user")]
    usual = [{"role": role, "content": "a b"} for role in ("system", "user")]
    assert codec.encode_chat(asked).count(ident) == codec.encode_chat(usual).count(ident)
    row = codec.encode_row(TextTemplate(LAB_TEMPLATE), {"prompt": mark, "response": mark})
    assert row.ids.count(ident) == LAB_TEMPLATE.count(mark)
