"""Damage that is seen and undone, and sound text that is let alone."""

import time

import pytest

from phicli.dataset.text_repair import (
    CODE,
    are_entities_meant,
    repair,
    row_findings,
    text_findings,
)

SOUND = [
    "Ein „Gruß“ und „Spaß“ – „Ä“, „Å“, „Ü“!", "« À Paris », dit-il : « Là-bas, à « Nice » … »", "ABROGÉ », café’”",
    "«Ñ» ¿Cuánto? ¡Ñandú! NIÑO” SÃO PAULO, IRMÃO", "Ðorđe, Þór, við „fórum“ í „Garð“…", "Привет, „мир“ — «да»",
    "Γειά σου «κόσμε»", "日本語「東京」、良い。", "🙂👍🏽 10 € – 20 °C ½ ×3 ÷2 ±1 ©®™", "Tiếng Việt: Ấn Độ, Đà Nẵng",
    "AT&T, R&D; a && b; &unknown; x & y;", "tab\there\nnext line", "Nan bread, null hypothesis", "naïve coöperate",
]


def misread(text, encoding="cp1252"):
    """UTF-8 bytes read in an 8-bit encoding, as programs do; undefined bytes pass."""
    out = ""
    for byte in text.encode("utf-8"):
        try:
            out += bytes([byte]).decode(encoding)
        except UnicodeDecodeError:
            out += chr(byte)
    return out


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_is_let_alone(text):
    assert list(text_findings(text)) == []
    assert repair(text) == text


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["Café à Zürich", "Kraków – it’s “nice”…", "10 € ☕ 🙂", "Привет и мир", "日本語の本",
                                  "Ελλάδα", "שלום", "São Tomé: NACIÓN"])
def test_mojibake_is_seen_and_undone(text, encoding):
    broken = misread(text, encoding)
    assert "mojibake" in list(text_findings(broken))
    assert repair(broken) == text
    assert repair(misread(broken, encoding)) == text  # twice misread


@pytest.mark.parametrize(("text", "code", "repaired"), [
    ("a\x00b\x1b[31mc\x7f", "control_character", "ab[31mc"),
    ("one\r\ntwo\rthree", "control_character", "one\ntwo\nthree"),
    ("\ufeffx", "control_character", "x"),
    ("a &amp; b &#39;c&#x27; &eacute;&copy=1", "html_entity", "a & b 'c' é&copy=1"),
])
def test_undone(text, code, repaired):
    assert list(text_findings(text)) == [code]
    assert repair(text) == repaired
    assert list(text_findings(repaired)) == []


@pytest.mark.parametrize(("text", "code"), [
    ("", "empty_field"), (" \n", "empty_field"), ("NaN", "nan_text"), (" null ", "nan_text"), ("<NA>", "nan_text"),
    ("caf\ufffd", "replacement_character")])
def test_lost_for_good(text, code):
    assert list(text_findings(text)) == [code]
    assert repair(text) == text


@pytest.mark.parametrize("texts", [
    ("q", "Write `&amp;` and `&lt;`"), ("q", "As ``a`&amp;``."), ("q", "So:\n```html\nR&amp;D\n```\nDone."),
    ("q", "> ~~~\n> R&amp;D\n> ~~~"), ("q", "So:\n\n    R&amp;D\n\nDone."), ("What is `&amp;`?", "It is &amp;."),
    ("How do I write & in HTML?", "&amp;"), ("Which entity is that?", "&amp;"), ("q", "An ampersand is &amp;."),
    ("q", "<p class=\"a\">R&amp;D</p>"), ("Encode <b>A</b>.", "&lt;b&gt;A&lt;/b&gt;"), ("q", "<br/>R&amp;D"),
])
def test_entities_that_are_meant(texts):
    assert are_entities_meant(texts) and list(row_findings([("a", text) for text in texts])) == []


@pytest.mark.parametrize("texts", [
    ("q", "AT&amp;T"), ("q", "it&#39;s"), ("Run `make`?", "AT&amp;T says so: `make`."), ("q", "1 < 2, R&amp;D > 3"),
    ("q", "See https://a.b/c.html?x=1&amp;y=2 or <me@a.b>."), ("How do we escape to Nara?", "By R&amp;D."),
])
def test_entities_in_prose(texts):
    assert list(row_findings([("a", text) for text in texts])) == [("a", "html_entity")]


def test_entities_are_decoded_once():
    assert repair("R&amp;amp;D &amp;lt; &#38;gt; &Atilde;&copy;") == "R&amp;D &lt; &gt; é"
    assert repair("CafÃ© R&amp;D\r\n", entities=False) == "Café R&amp;D\n"


@pytest.mark.parametrize("text", ["".join("`" * n + " " for n in range(1, 1500)), "`a ``b " * 20_000, "<a " * 100_000,
                                  "```\n~~~\n" * 50_000, "> " * 100_000, "`" + "\n" * 200_000])
def test_no_text_takes_long(text):
    started = time.process_time()
    CODE.sub("", text)
    are_entities_meant([text])
    assert time.process_time() - started < 5
