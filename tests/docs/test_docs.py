"""What the documents name exists: files, modules, sections of pages, commands and their options."""

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import typer.main

from phicli.cli.main import app
from phicli.config.layers import SETTINGS

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
TOP = {path.name for path in ROOT.iterdir()} - {"models"}  # where paths begin; models/ is made by the commands
ROOMS = {path.name for path in (ROOT / "phicli").iterdir() if (path / "__init__.py").is_file()}
OTHER_THINGS = {"phicli/hashes", "phicli.slots", "phicli.digest"}  # in the cache, in ONNX metadata, at Azure
ENVIRONMENT = {"PHICLI_CONFIG", *(setting.env for setting in SETTINGS.values())}
OTHERS = ("az ", "olive ", "python ", "hf ", "pip ", "git ", "make ")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """What stands in backticks in the page's text."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def wrong_paths(page: Path) -> list[str]:
    """Paths in backticks that begin like one of the repository's, or of the package's, and are none."""
    wrong = []
    for span in spans(page):
        for word in span.split():
            path = word.rstrip(",:;").split("::")[0]
            top = path.split("/")[0]
            if "/" not in path or top not in TOP | ROOMS or path in OTHER_THINGS or "<" in path or "NAME" in path:
                continue
            if not [*ROOT.glob(path.rstrip("/")), *(ROOT / "phicli").glob(path.rstrip("/"))]:
                wrong.append(path)
    return wrong


def wrong_modules(page: Path) -> list[str]:
    """Dotted names `phicli.a.b` whose beginning is no module of the package, and that no name in it follows."""
    wrong = []
    for name in {n for span in spans(page) for n in re.findall(r"\bphicli(?:\.[a-z_]\w*)+", span, re.I)}:
        parts = name.split(".")
        if parts[1] in ("toml", "json") or name in OTHER_THINGS:
            continue
        there = max(n for n in range(1, len(parts) + 1) if _module(parts[:n]))
        rest = parts[there:]
        if len(rest) > 2 or (rest and rest[0] not in _module(parts[:there])):
            wrong.append(name)
    return wrong


def _module(parts: list[str]) -> str:
    """The text of a module; empty where there is none."""
    place = ROOT.joinpath(*parts)
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file.read_text()
    return ""


def wrong_links(page: Path) -> list[str]:
    """Links to files or sections that are not there."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@cache
def options() -> dict[str, set[str]]:
    """Each command -> the spellings of its options."""
    top = typer.main.get_command(app)
    found = {"": spellings(top)}
    for name, command in top.commands.items():
        found[name] = spellings(command)
        for inner, deeper in getattr(command, "commands", {}).items():
            found[f"{name} {inner}"] = spellings(deeper)
    return found


def spellings(command) -> set[str]:
    return {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help", "-h"}


def command_lines(page: Path) -> list[str]:
    """Calls of phicli in code: in backticks, and line by line in blocks for a shell."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    lines = [line for language, block in blocks if language in ("", "sh") for line in block.splitlines()]
    found = []
    for text in [*lines, *spans(page)]:
        for call in re.findall(r"(?:^|[\s(/])phicli (?!import\b)([a-z-][^|()>#`]*)", text):
            found.append(call.split("$(")[0].strip())
    return found


def wrong_options(page: Path) -> list[str]:
    """Calls whose command does not exist or has no such option."""
    wrong = []
    for call in command_lines(page):
        words = [word.rstrip(",.;:)") for word in call.split()]
        name = words[0] if not words[0].startswith("-") else ""
        if " ".join(words[:2]) in options():
            name = " ".join(words[:2])
        if name and name not in options():
            wrong.append(f"phicli {call}")
            continue
        wrong += [f"phicli {name} {word}" for word in words if word.startswith("-") and len(word) > 1
                  and word.split("=")[0] not in options()[name] | options()[""]]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    assert not wrong_paths(page)
    assert not wrong_modules(page)
    assert not wrong_links(page)
    assert not wrong_options(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_backticks_are_options_of_some_command(page):
    known = set().union(*options().values())
    own = [span for span in spans(page) if span.startswith("--") and not span.startswith(OTHERS)]
    unknown = {word for span in own for word in re.findall(r"--[a-z][a-z-]+", span)} - known
    assert not unknown - of_benchmarks()


@cache
def of_benchmarks() -> set[str]:
    """Options of the scripts in benchmarks/, which docs/performance.md names."""
    return {option for script in (ROOT / "benchmarks").glob("*.py")
            for option in re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_are_settings(page):
    named = set(re.findall(r"\bPHICLI_[A-Z_]+\b", page.read_text()))
    assert not {name for name in named if name not in ENVIRONMENT}


def test_every_page_is_on_the_site_and_linked_from_its_start():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert not [page for page in {*pages, "lab.ipynb"} - {"index.md"} if f"]({page})" not in index]
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(re.findall(r"'([^']+\.md)'", str(navigation))) == sorted(pages)


def test_the_tree_lists_what_the_package_holds():
    tree = (ROOT / "docs" / "development.md").read_text()
    package = {path.name for path in (ROOT / "phicli").iterdir() if not path.name.startswith("_")}
    listed = {name for line in re.findall(r"^  ([^\s,]+(?:, [^\s,]+)*) ", tree, re.M) for name in line.split(", ")}
    assert {name.rstrip("/") for name in listed} == package


def test_the_architecture_page_has_the_rooms_of_the_contract():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in tool["contracts"] if contract["type"] == "layers")
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \|", page[: page.index("\n## ")], re.M)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == [layer.split(" | ") for layer in layers]


def test_wrong_names_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n`phicli/nowhere.py` `phicli.text.nothing` [a](#missing) [b](none.md)\n"
                    "```sh\nphicli quantize --sample 3\nphicli quantise\n```\n")
    assert wrong_paths(page) == ["phicli/nowhere.py"]
    assert wrong_modules(page) == ["phicli.text.nothing"]
    assert wrong_links(page) == ["#missing", "none.md"]
    assert wrong_options(page) == ["phicli quantize --sample", "phicli quantise"]
