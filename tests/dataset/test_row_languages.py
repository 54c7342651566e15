"""The language of most rows, and rows in another."""

import pytest

from phicli.dataset.languages import A_BATCH, FIRST, Languages

TEXTS = {
    "en": "Start at the old harbour in the morning, when the fish market opens and the boats come in.",
    "de": "Am Morgen beginnt man am alten Hafen, wenn der Fischmarkt öffnet und die Boote zurückkommen.",
    "fr": "Commencez le matin au vieux port, quand le marché aux poissons ouvre et que les bateaux rentrent.",
    "es": "Empiece por la mañana en el puerto viejo, cuando abre el mercado de pescado y vuelven los barcos.",
    "ru": "Начните утром в старом порту, когда открывается рыбный рынок и возвращаются лодки.",
    "ja": "朝は古い港から始めましょう。魚市場が開き、船が帰ってくる時間です。",
    "zh": "早上从老港口开始，那时鱼市开门，渔船也回来了，然后可以去老城散步。",
    "hi": "सुबह पुराने बंदरगाह से शुरू करें, जब मछली बाज़ार खुलता है और नावें वापस आती हैं।",
    "th": "เริ่มต้นที่ท่าเรือเก่าในตอนเช้า เมื่อตลาดปลาเปิดและเรือกลับมา",
    "ar": "ابدأ صباحا من الميناء القديم عندما يفتح سوق السمك وتعود القوارب إلى الميناء.",
}
CODE = "```python\ndef f(x):\n    return [i for i in range(x) if i % 2]\n```\n"


def looked_at(texts):
    languages = Languages()
    languages.add(texts, range(1, 1 + len(texts)))
    return languages


@pytest.mark.parametrize("main", TEXTS)
def test_the_rows_that_differ_from_most(main):
    others = [language for language in TEXTS if language != main]
    languages = looked_at([TEXTS[main]] * 10 + [TEXTS[language] for language in others])
    assert languages.main == main
    assert languages.others() == {language: (1, [11 + at]) for at, language in enumerate(others)}


def test_what_is_short_or_no_prose_is_not_judged():
    short = ["Ja, gern.", "東京です。", "", "12 34 56 " * 20, CODE * 3, "half \ud83d",
             "https://example.org/eine/seite/und/noch/eine " * 5,
             "Kyoto Osaka Nara Tokyo Kobe Sapporo Naha Nagoya Hiroshima Fukuoka"]
    languages = looked_at([TEXTS["en"]] * 5 + short)
    assert (languages.main, languages.others(), languages.counts.total()) == ("en", {}, 5)


def test_code_does_not_hide_the_prose_around_it():
    assert looked_at([CODE + TEXTS["de"]]).main == "de"


def test_without_a_main_language_none_is_another():
    languages = looked_at([TEXTS["en"], TEXTS["de"]])
    assert languages.main is None and languages.others() == {}
    assert looked_at([]).main is None


def test_of_many_rows_some_of_each_batch_are_looked_at():
    languages = looked_at(["short"] * FIRST)
    languages.add([TEXTS["en"], TEXTS["de"]] * 500, range(FIRST, FIRST + 1000))
    assert languages.looked_at == FIRST + A_BATCH and languages.counts.total() == A_BATCH
    languages.add([TEXTS["fr"]], [1])
    assert languages.looked_at == FIRST + A_BATCH + 1
