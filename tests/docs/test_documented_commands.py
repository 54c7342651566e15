"""The commands and programs of README.md, the tutorial and the how-to pages run, on the built-in model and a random one
with small settings, in one folder and in the order of the pages. All other commands are parsed by the real app."""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from phicli.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RUN = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("index.md", "tutorial.md")),
       *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
BLOCK = re.compile(r"(<!-- parsed only: [^>]+-->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
SMALL = {
    "PHICLI_QUANTIZE_SAMPLES": "8", "PHICLI_QUANTIZE_SEQ_LEN": "64", "PHICLI_EVALUATE_ROWS": "3",
    "PHICLI_FINETUNE_LORA_R": "4",
    "PHICLI_FINETUNE_MAX_STEPS": "4", "PHICLI_CHAT_MAX_NEW_TOKENS": "6", "PHICLI_DEVICE": "cpu",
}
OTHERS = ("make ", ". ", "export ", "pip ", "pipx ", "git ", "hf ", "az ")


def blocks(page: Path, language: str) -> list[tuple[str, bool]]:
    """The page's blocks of a language, and whether they are to be run."""
    return [(text, not mark) for mark, name, text in BLOCK.findall(page.read_text()) if name == language]


def calls(text: str) -> list[str]:
    """Lines of a block for a shell that call phicli, without remarks. AssertionError: a line of an unknown kind."""
    text = re.sub(r"^make lab\b(?!-)", "phicli run --model tiny", text.replace("\\\n", " "), flags=re.M)
    lines = [re.sub(r"\s+#\s.*", "", line).strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    found = [line for line in lines if line.startswith("phicli ")]
    assert not [line for line in lines if line and line not in found and not line.startswith(OTHERS)], text
    return found


def parse(line: str) -> None:
    """Parse a call as the command line would: command, options, choices and numbers. Raises as the parser does."""
    top = typer.main.get_command(app)
    with top.make_context("phicli", shlex.split(line)[1:], ignore_unknown_options=False) as context:
        rest = [*context._protected_args, *context.args]
        while rest:
            name, command, rest = context.command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
            for option, setting in getattr(command.callback, "settings", {}).items():
                value = context.params.get(option)
                assert not (value and setting.choices) or value in setting.choices, f"{value} is not one of them"
            rest = [*context._protected_args, *context.args] if hasattr(command, "commands") else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader may have: rows of their own, a model of their own."""
    place = tmp_path_factory.mktemp("reader")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        runpy.run_path(str(ROOT / "scripts" / "first_hour.py"))["write_inputs"](place)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    (place / "data").symlink_to(ROOT / "data")
    (place / "held-out.jsonl").write_text('{"prompt": "When are you open?", "response": "From nine to six."}\n' * 2)
    (place / "stdin").write_text("Where is it quiet?")
    return place


def test_commands_and_programs_run(cli, folder, monkeypatch):
    monkeypatch.chdir(folder)
    own = {"XDG_STATE_HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}  # a page removes what is in there
    for name, value in {**SMALL, **own, "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    said = {}
    program, = (text for text, _ in blocks(ROOT / "docs" / "how-to" / "own-model.md", "python"))
    exec(compile(program, "own-model.md", "exec"), {})
    for page in RUN:
        for line in [line for text, wanted in blocks(page, "sh") if wanted for line in calls(text)]:
            if line in said:
                continue
            asks = shlex.split(line)[1] != "chat" or re.search("--prompt|--compare|\"", line)
            words = re.sub(r"--max-steps \d+", "--max-steps 4", line)
            with Path(os.devnull if asks else "stdin").open(encoding="utf-8") as stdin:
                monkeypatch.setattr(sys, "stdin", stdin)
                said[line] = cli(*shlex.split(words)[1:])
            assert said[line].code == 0, f"{page.name}: {line}\n{said[line].err}"
        if page.name in ("README.md", "use-the-result.md"):
            for text, _ in blocks(page, "python"):
                exec(compile(text, page.name, "exec"), {})
        Path("phicli.toml").unlink(missing_ok=True)
    mine = said["phicli run --model tiny --data faq.clean.jsonl --name faq"].err
    assert "evaluate: left out" in mine and "faq, asked: What do I do with the chain?" in mine
    adapters = [stage["place"] for stage in json.loads(cli("status", "--model", "./my-model", "--json").out)
                if stage["step"] == "finetune"]
    assert adapters == ["models/my-model/ft/faq"]  # nobody has asked for travel


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page):
    for text, _ in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:^|[;&|(] ?)(?:\.venv/bin/)?(phicli [^|)#;]*)", line):
                parse(call.replace("$(", "").replace("<<<", "").strip())


def test_what_does_not_parse_is_noticed():
    for line in ("phicli quantise", "phicli quantize --sample 3", "phicli quantize --algorithm awk",
                 "phicli quantize --bits four", "phicli config fetch model"):
        with pytest.raises(Exception, match=r"No such|not one of|valid integer"):
            parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_are_python(page):
    for text, _ in blocks(page, "python"):
        ast.parse(text)


def test_the_site_builds_and_asks_nobody(tmp_path):
    """With links and anchors checked (--strict); nothing that a page loads by itself is on another host."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True,
                           text=True, timeout=100)
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "build" / "site"
    assert {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")} <= {
        page.relative_to(site) for page in site.rglob("*.html")}
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"?([^\s\">]+)", page.read_text())
        assert not [target for target in loaded if "//" in target], page
    for style in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.search(r"(?:url\(|@import|href=)\s*['\"]?(?:https?:)?//", style.read_text()), style
