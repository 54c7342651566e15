"""`phicli report`: one page of a finished lab, which holds what was measured and believes no text of others."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from phicli.artifacts.stages import write_sealed
from phicli.reporting.charts import Scale, column_chart, dot_chart, line_chart

EVIL = "</title><script>alert(1)</script>\u202e|`x` [a](https://example.org) <img src=x onerror=y>\n# no"
TAGS = """html head meta title style body h1 h2 h3 p div b br span table caption tr th td small code ul li dl dt dd
svg g line text rect circle polyline figure figcaption"""
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements with their attributes; checks that all are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.found, self.text = list[str](), list[tuple[str, dict]](), ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def lab(finished_lab, tmp_path) -> Path:
    """A root with links to the stages of the lab, and files that may be changed."""
    for path in (finished_lab / "lab").iterdir():
        (tmp_path / path.name).symlink_to(path) if path.is_dir() else (tmp_path / path.name).write_bytes(
            path.read_bytes())
    return tmp_path


def test_a_page_has_what_was_measured(cli, lab):
    done = cli("report", "--root", lab, "--model", "tiny")
    assert done.code == 0 and done.out == f"{lab / 'report.html'}\n", done.err
    page = Page((lab / "report.html").read_text())
    evaluation = json.loads((lab / "evaluation.json").read_text())
    shown = {stage["stage"] for stage in evaluation["stages"]}
    assert shown and all(name in page.text for name in shown)
    manifest = json.loads((lab / "ft" / "travel" / "phicli.json").read_text())
    assert manifest["inputs"]["data"][:16] in page.text and "rows.jsonl" in page.text
    drawn = [attributes["points"] for tag, attributes in page.found if tag == "polyline"]
    curve = manifest["quality"]["curve"]
    assert [len(line.split()) for line in drawn] == [len(curve) - 1, len(curve)]  # before training no loss of it
    errors = json.loads((lab / "awq" / "phicli.json").read_text())["quality"]["layer_errors"]
    columns = [a for tag, a in page.found if tag == "rect" and "x" in a]
    heights = [float(column["height"]) for column in columns]
    assert [h / max(heights) for h in heights] == pytest.approx([e / max(errors) for e in errors], rel=0.01)
    assert "speed: phicli benchmark" in page.text


def test_a_page_asks_nobody_for_anything(cli, lab):
    cli("report", "--root", lab, "--model", "tiny")
    text = (lab / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "a"} & {tag for tag, _ in page.found}
    assert not [a for _, a in page.found if {"src", "href", "srcset", "action", "style"} & a.keys()]
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    policy = next(a["content"] for tag, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_texts_of_others_stay_texts(cli, lab, form):
    document = json.loads((lab / "evaluation.json").read_text())
    document.pop("check")
    document["stages"][0]["stage"] = document["eval_data"] = EVIL
    document["stages"][1] |= {"kl": float("1e300"), "perplexity": "many", "bytes": -1, "top1": [], "kl_interval": 3}
    document["answers"] = [{"prompt": EVIL, "reference": None, "answers": {EVIL: EVIL}}, {"answers": []}, 4]
    write_sealed(lab / "evaluation.json", document)
    rows = [{"engine": EVIL, "n_gen": 8, "avg_ts": 5.0, "stddev_ts": True}, {"avg_ts": None}, {"avg_ts": "x"}, 7]
    (lab / "bench.json").write_text(json.dumps(rows))
    write_sealed(lab / "search" / "search.json", {"goal": EVIL, "trials": [
        {"settings": {EVIL: EVIL}, "size": 3, "kl": 0.5, "best": True}, {"settings": 2, "outside": EVIL}, []]})
    done = cli("report", "--root", lab, "--model", EVIL.replace("\n", "/"), "--benchmark", lab / "bench.json",
               "--format", form, "--output", lab / "page")
    assert done.code == 0, done.err
    text = (lab / "page").read_text()
    assert "\u202e" not in text and "\\u202e" in text and "<script" not in text and "<img" not in text
    if form == "html":
        page = Page(text)
        assert {tag for tag, _ in page.found} <= set(TAGS.split())
        assert "</title><script>alert(1)</script>" in page.text
    else:
        assert not re.search(r"(?<!\\)\[a\]|^# no|(?<!\\)`x`|https:/", text, re.M)
        tables = [line for line in text.splitlines() if line.startswith("|") and "alert" in line]
        assert tables and all("\\|\\`x\\`" in line for line in tables)


def test_what_is_not_a_report_stays(cli, lab, tmp_path):
    (lab / "report.html").write_text("mine")
    refused = cli("report", "--root", lab, "--model", "tiny")
    assert refused.code == 3 and "no report" in refused.err and (lab / "report.html").read_text() == "mine"
    assert cli("report", "--root", lab, "--model", "tiny", "-o", lab / "new.html").code == 0
    assert cli("report", "--root", lab, "--model", "tiny", "-o", lab / "new.html").code == 0  # its own, again
    assert cli("report", "--root", tmp_path / "none", "--model", "tiny").code == 4
    none = cli("report", "--root", lab, "-o", lab / "new.html", "--benchmark", lab / "none.json")
    assert none.code == 4 and f"phicli benchmark --root {lab} --output {lab / 'none.json'}" in none.err
    (lab / "other.json").write_text('{"a": 1}')
    assert cli("report", "--root", lab, "-o", lab / "new.html", "--benchmark", lab / "other.json").code == 3
    (lab / "deep.json").write_text("[" * 100000)
    assert cli("report", "--root", lab, "-o", lab / "new.html", "--benchmark", lab / "deep.json").code == 3


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e14, 1e14], [1e-15, 2e-15], [3, 1e-15], [7e14, 7e14 + 1]])
def test_pictures_of_any_figures(values):
    scale = Scale(values, 100, 0)
    assert all(-0.01 <= scale(value) <= 100.01 for value in values) and 2 <= len(scale.ticks()) <= 12
    line_chart("a", [("b", [(value, value) for value in values])], "x", "y", (values[0], "here"))
    assert len(column_chart("a", values, "x", "y").marks) == len(values)
    dot_chart("a", [(value, value, "c", "") for value in values], "x", "y")
    assert len(line_chart("a", [("b", [(float(i), 1.0) for i in range(5000)])], "x", "y").lines[0][1]) == 300
