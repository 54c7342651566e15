"""What helps against an error is a line that can be pasted: one command, nothing behind it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from phicli.cli.main import COMMANDS
from phicli.errors import Missing

PACKAGE = Path(__file__).parents[2] / "phicli"
NAMED = ("hint", "also")
# A command of phicli's with what it may have behind it: places, and options with their values.
VALUE = r"[\w…./:+={}~'\"-]+"
STEP = rf"(?:{'|'.join(COMMANDS)}|{{}})"
CALL = rf"phicli {STEP}(?: (?:show|list|logs|use|get|edit))?"
PART = rf"(?:[A-Z{{\"'][^ ,;]*|azureml:[^ ,;]+|--?[a-z][\w-]*(?:[= ]{VALUE})?)"
LINE = re.compile(rf"{CALL}(?: {PART})*(?: (?:> FILE|…))?")
PROGRAM = re.compile(r"^(pip install|git clone|az|hf|chmod|chat) ")


def texts(node: ast.AST, known: dict[str, list[ast.expr]], depth: int = 0) -> Iterator[str]:
    """What an expression may be, `{}` for what is only known when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        parts = [""]
        for value in node.values:
            inner = [*texts(value.value, known, depth + 1)] if isinstance(value, ast.FormattedValue) else [value.value]
            parts = [before + one for before in parts for one in (inner or ["{}"])]
        yield from parts
    elif isinstance(node, ast.BinOp):
        yield from (one + other for one in texts(node.left, known, depth) for other in texts(node.right, known, depth))
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body, known, depth), *texts(node.orelse, known, depth))
    elif isinstance(node, ast.List | ast.Tuple):
        yield from (one for item in node.elts for one in texts(item, known, depth))
    elif isinstance(node, ast.Name) and depth < 4:
        yield from (one for value in known.get(node.id, ()) for one in texts(value, known, depth + 1))


def hints() -> Iterator[tuple[str, str]]:
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    constants: dict[str, list[ast.expr]] = {}
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
                constants.setdefault(node.targets[0].id, []).append(node.value)
    for path, tree in trees.items():
        local = {**constants}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in NAMED:
                local.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in NAMED:
                yield from ((f"{path.name}:{node.value.lineno}", one) for one in texts(node.value, local))


def test_a_command_in_a_hint_ends_it():
    found = [*hints()]
    assert len(found) > 250 and sum("phicli " in text for _, text in found) > 70
    wrong = []
    for place, text in found:
        for step in text.split(" && ") if PROGRAM.match(text) or text.startswith("phicli") else [text]:
            words = re.sub(r"^.*: (?=phicli)", "", step)  # what it is for
            named = re.search(rf"\bphicli {STEP}\b", words)
            whole = LINE.fullmatch(words) or re.fullmatch(rf"[A-Z]+=\w+ {CALL}", words)
            if (named and not whole) or (PROGRAM.match(step) and re.search(r"[,;] ", step)):
                wrong.append(f"{place}: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("text", ["phicli quantize, or --base FOLDER", "phicli optimize --device cpu, then chat",
                                  "phicli quantize writes models that can", "az login, as someone else",
                                  "phicli quantize or phicli run", "phicli gate --accept, or limits"])
def test_what_breaks_when_it_is_pasted_is_found(text, monkeypatch):
    monkeypatch.setitem(globals(), "hints", lambda: [("here", text)] * 300 + [("there", "phicli run")] * 80)
    with pytest.raises(AssertionError, match=f"here: {text}"):
        test_a_command_in_a_hint_ends_it()


def test_what_helps_too_is_a_line_of_its_own(capsys):
    from phicli.cli.messages import failure

    failure(Missing("nothing there", hint="phicli quantize", also=["phicli run", "a\n  or: trap"]))
    assert capsys.readouterr().err.splitlines() == [
        "error: nothing there", "  try: phicli quantize", "   or: phicli run", "   or: a", "      or: trap",
        "  see: phicli doctor"]
