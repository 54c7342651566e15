"""Token counts in batches equal those of the codec, row by row."""

import pytest

from phicli.config.shared import DEFAULT_TEMPLATE
from phicli.dataset.tokens import TokenCounter
from phicli.text import TextCodec, TextTemplate

ROWS = [
    {"prompt": "Where is Kyoto?", "response": "It is in Japan, west of Tokyo."},
    {"prompt": "", "response": ""},
    {"prompt": " \n blanks \n", "response": "  "},
    {"prompt": "<|user|> typed <|end|>", "response": "<|endoftext|>"},
    {"prompt": "日本 🙂 é", "response": "a\n\n\nb"},
]
TEMPLATES = [DEFAULT_TEMPLATE, "### Q: {prompt}\n### A: {response}", "{response}",
             "{prompt} {response}{prompt}<|end|>\n",
             "<|system|>\nBe brief.<|end|>\n<|user|>{prompt}<|end|><|assistant|>{response}"]


@pytest.fixture(scope="module")
def codec(tiny):
    return TextCodec(tiny)


@pytest.fixture(params=[False, True], ids=["plain", "stripping"])
def any_codec(request, tiny):
    """Phi-3's own tokenizer lets some special tokens take the blanks beside them; so does the second codec."""
    codec = TextCodec(tiny)
    if request.param:
        for ident, token in codec.special.values():
            name = token.content
            codec.special[name] = (ident, type(token)(name, rstrip=name != "<|endoftext|>", lstrip=name == "<|end|>"))
    return codec


@pytest.mark.parametrize("template", TEMPLATES)
def test_rows_count_as_the_codec_counts(any_codec, template):
    template = TextTemplate(template)
    totals, _ = TokenCounter(any_codec, template).count(ROWS)
    assert totals == [len(any_codec.encode_row(template, row).ids) for row in ROWS]


def test_fields_between_special_tokens_count_as_alone(codec):
    template = TextTemplate(DEFAULT_TEMPLATE)
    _, fields = TokenCounter(codec, template).count(ROWS[:1])
    assert fields == {name: [len(codec.encode_text(ROWS[0][name]))] for name in ("prompt", "response")}


def test_fields_and_literals_make_up_the_row(codec):
    template = TextTemplate("{prompt}<|end|>{response}<|end|>")
    totals, fields = TokenCounter(codec, template).count(ROWS)
    assert [sum(counts) + 2 for counts in zip(*fields.values(), strict=True)] == totals


def test_a_huge_text_is_counted_in_pieces(codec, monkeypatch):
    template = TextTemplate(DEFAULT_TEMPLATE)
    rows = [{"prompt": "Short?", "response": "many words, again and again. " * 40}]
    exact, exact_fields = TokenCounter(codec, template).count(rows)
    monkeypatch.setattr("phicli.dataset.tokens.LONG", 100)
    totals, fields = TokenCounter(codec, template).count(rows)
    pieces = len(rows[0]["response"]) // 100 + 1
    assert exact[0] <= totals[0] <= exact[0] + 2 * pieces
    assert fields["prompt"] == exact_fields["prompt"]
    assert exact_fields["response"][0] <= fields["response"][0] <= exact_fields["response"][0] + 2 * pieces
