"""Damage that a reader sees, and sound text that only looks like it."""

import pytest

from phicli.dataset.suspicious import is_cut_off, suspicions


def codes(text):
    """What is found in a text that stands among others."""
    texts = ["Sound text, with a full stop.", text, ""]
    found = list(suspicions(texts))
    assert all(at == 1 for at, _ in found)
    return [code for _, code in found]


DAMAGED = {
    "glued_punctuation": [
        "The market is a must-visit,t don't overlook the harbour.", "We had a great time.The food was good.",
        "Bring a coat,it gets cold at night.", "Is it open?You can ask at the desk.",
        "It rains a lot;take an umbrella.", "What a view!The whole bay lies below.",
        "Take the first left.It is a short walk.", "They sell bread,cheese and olives.",
        "Das Museum ist offen,aber der Turm nicht.", "Nous avons mangé,puis nous sommes partis.",
        "Он пришёл,но было поздно.", "Ride the bus.You will like it.",
        "The old town is lovely.And the ferry is cheap.", "Visit the castle,n the gardens behind it.",
        "The bus costs two yen.Cards work too.", "The shrine is on a hill.Go early.", "He said so.I went there.",
        "we walked for hours.then we ate",  # "then" might be a name in a program
    ],
    "doubled_word": [
        "Take the the tram to the centre.", "It is one of of the best.", "Walk to to the harbour.",
        "The the tower is old.", "You can can buy tickets there.", "There is a a small museum.",
        "They have have a pool.", "The restaurant restaurant by the river is good.", "El el mercado abre a las ocho.",
        "Sie kommt aus der Stadt und und geht.", "We eat in the the", "La ville de de Paris.",
        "Go early, and and bring water.", "Bring your your coat.", "Walk to the museum museum.",
    ],
    "markup": [
        "Take the tram.<br>Then walk.", "<p>Take the tram.</p>", "Take <b>the tram</b>.", "See <a href='x'>here</a>.",
        "One<br/>two", "<div class=\"x\">One", "<!-- x --> One", "[b]Bold[/b] words",
        "[url=https://x.org]there[/url]", "The [[Eiffel Tower]] is high.", "See [[Paris|the city]].",
        "{{Infobox settlement}} Paris is big.", "It costs {{price}} euros.", "Line</p>",
        "<span style=\"color:red\">hot</span>", "<li>One", "H<sub>2</sub>O",
    ],
}
SOUND = [
    "For example, e.g. this, i.e. that; 3.14 and 1,000,000 in the U.S.A. at 10:30.",
    "Open file.txt, README.md and a.b.c!", "See https://example.org/a,b;c?d=e!f and www.example.org?x",
    "I don't know… maybe...later", "Use asyncio.Queue here, or os.PathLike.", "In Python, asyncio.Queue is one.",
    "Visit Booking.com or Node.js, ASP.NET too.", "name,age,city\nAnn,30,Rome", "red,green,blue are colours",
    "Call f(x,y) and then a,b = b,a in it.", "你好,世界。他说,好。", "使用iPhone,iPad和Mac",
    "日本語は、良い。いいえ,はい", "She said \"yes,\" and left.", "Rock'n'roll! Yahoo! and so on",
    "```\nfoo,bar the the <p>\n```", "Run `a,b c;d` and `the the`.", "He had had enough of that that day.",
    "It is very very good, so so, bye bye.", "Bora Bora and Walla Walla.", "Row row row your boat.", "The the the",
    "gave her her book", "Pole pole means slowly.", "yavaş yavaş, piano piano, orang orang",
    "What is is, and a long long way.", "The market, the harbour; the the-dansant.",
    "A List<int> or Map<String, Vec<T>> of them", "I <3 you, 1 < 2 > 0 and a<b>c",
    "x[0][[1, 2], [3, 4]] and [[1]], if [[ -f x ]]", "df[[a]] and style={{color}}", r"\frac{{a}}{{b}} and {a}",
    "In HTML the <p> tag starts a paragraph.", "Write `<p>` first.", "[link](https://x.org) and [i] and [1]",
    "<|user|> hello <think> hm </think>", "Put a <div> element there.", "git push <remote> <branch>",
    "10 10 and ha ha", "    indented = code,the the\nThe text.", "The list is:\n- the\n- the end",
    "Hello\u2019s, it\u2019s", "", "Mr. Smith vs. Dr. No, No. 5.", "Prices: €10,50 or 10.50 EUR!",
    "¿Qué? ¡Hola! «Oui», dit-il.", "Wait,\nthen go.",
]


@pytest.mark.parametrize("code", DAMAGED)
def test_damage_is_seen(code):
    seen = [text for text in DAMAGED[code] if codes(text) == [code]]
    assert len(seen) >= 0.9 * len(DAMAGED[code]), set(DAMAGED[code]) - set(seen)


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_is_let_alone(text):
    assert codes(text) == []


def test_each_text_has_its_own_findings():
    texts = ["Sound."] * 300 + ["Take the the tram.<br>Go."] + ["Sound."] * 300 + ["Go,it is late."]
    assert sorted(suspicions(texts)) == [(300, "doubled_word"), (300, "markup"), (601, "glued_punctuation")]
    assert list(suspicions([])) == []


HOSTILE = [
    "<a ", "<a" + " " * 50, "[[a", "{{a", "a-", "a.", "the ", "a,", "```\n", "*", "“", "\t", "[url=", "a a", "' ",
    ". ) ", "very very, ", "krokodil krokodil, ", "a a 1 ", "x.Y ", "abc.Def_ ",
]


@pytest.mark.timeout(20)
def test_hostile_text_takes_no_longer():
    """Patterns that try every way to match would need years."""
    for part in HOSTILE:
        text = part * (200_000 // len(part))
        list(suspicions([text, text + "x"]))
        is_cut_off(text)
        is_cut_off(text + "x")


FIRST = "Start at the old harbour in the morning. The fish market opens at six. "
CUT = [
    FIRST + "Then walk along the", FIRST + "After that you can take a boat and",
    FIRST + "The tower is open from nine to", FIRST + "Bring a coat, because", FIRST + "It is a well-",
    FIRST + "There you find bread, cheese and olives,",
    FIRST + "\n\nThe ferry to the island leaves every hour and takes you to a",
    FIRST + "Later in the day the crowds slowly leave", FIRST + "Der Turm ist offen und",
    FIRST + "Le musée est ouvert et", "Sure. Here it is:\n```python\nprint(1)\nfor x in y:",
    "東京は大きい。人口が多い。とても便利な町で", "北京很大。人很多。我们明天去看长城然后",
    "Москва большая. Город красивый. Завтра мы пойдём в большой", "The museum is old. The",
]
WHOLE = [
    "", "Paris", "The capital of France is Paris", "Take the tram. Then walk.", FIRST + "Have fun!",
    FIRST + "Have fun 🙂", FIRST + "“Have fun.”", FIRST + "(See above)",
    FIRST + "You need:\n- bread\n- cheese and the", FIRST + "You need:\n1. a map of the",
    FIRST + "\n```\nx = the\n```", FIRST + "See https://example.org/the", FIRST + "Regards, Ann",
    FIRST + "\n\nBest regards,\nAnn Smith", FIRST + "Kind regards,", FIRST + "**Bold end**", FIRST + "| a | b |",
    FIRST + "The answer is 42", FIRST + "x = y", "東京は大きい。人口が多い。", "यह अच्छा है। वह आया।",
    "هذا جيد. كيف حالك؟", "กรุงเทพเป็นเมืองใหญ่ มีคนมาก", FIRST + "\n## The end of the", "Sure thing. hope it helps",
    "no stops here\njust lines of a poem\nthat ends without\nany mark at all",
]


def test_texts_cut_off_are_seen():
    seen = [text for text in CUT if is_cut_off(text)]
    assert len(seen) >= 0.9 * len(CUT), set(CUT) - set(seen)


@pytest.mark.parametrize("text", WHOLE)
def test_whole_texts_are_not_cut_off(text):
    assert not is_cut_off(text)
