"""Writes docs/first-hour.md and docs/first-hour.svg: what a new user types in the first hour, and what is seen then.

    python scripts/first_hour.py --real models/smollm2

makes a copy of this checkout in a folder of its own, installs it there as README.md says, runs the commands of SCENES
in a terminal of 80 columns and 24 lines, one after the other, and writes down the screen. `make lab-real` makes the
root that --real names, for the picture. Needs the extra `docs`.
"""

import argparse
import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from terminal import Terminal, Typed

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "first-hour.md"
PICTURE = REPOSITORY / "docs" / "first-hour.svg"
PARTS = {"chain": "oil it once a month and wipe it dry", "saddle": "set it level, as high as your hip",
         "tyre": "pump it to the pressure that stands on its side", "light": "charge it overnight",
         "brake": "turn the small barrel at the lever until the pads grip", "bell": "tighten its screw by hand",
         "pedal": "the left one turns the other way", "basket": "close both of its straps"}
QUESTIONS = ("What do I do with the {}?", "How do I look after the {}?", "The {} is new to me. What should I know?",
             "Is there anything to do about the {} before a long ride?", "Tell me about the {}.")
MODEL = re.search(r"^```python\n(.*?)^```$", (REPOSITORY / "docs/how-to/own-model.md").read_text(), re.M | re.S)[1]
BEFORE = """# The first hour

What you type, and what you see then. `python scripts/first_hour.py` makes this page: it installs phicli into an empty
folder and runs every command below in a terminal of 80 columns and 24 lines. Longer output scrolls by; here it is
whole. Times are those of two CPU cores, which had other work too.
"""


@dataclass(frozen=True)
class Scene:
    """A section of the page. commands: what is typed, in this order; a pair has what is typed into the command too."""

    title: str
    text: str
    commands: tuple[str | tuple[str, tuple[Typed, ...]], ...]


SCENES = (
    Scene("Install", "You need Python 3.11 or newer. In the folder of phicli:", (
        "make install",)),
    Scene("Try everything", "The built-in model needs no download. One command does all steps. It prints a line for "
          "each step that is done, a table at the end, and what to type next.", (
        "phicli run --model tiny",)),
    Scene("Talk", "`phicli chat` takes the model that was used last. `/adapter none` switches to the model as it was "
          "before training; Ctrl-D leaves.", (
        ("phicli chat", (Typed("Ctrl-D leaves", "Where is it quiet in spring?\r"), Typed("tok/s", "/adapter none\r"),
                         Typed("adapter: none", "Where is it quiet in spring?\r"), Typed("tok/s", "/adapter travel\r"),
                         Typed("adapter: travel", "/stats\r"), Typed("its prompt", "\x04"))),)),
    Scene("Look at data of your own", "A table of questions and answers, saved by a spreadsheet program. `inspect` "
          "says what it understood, what is wrong with it, and how the model sees a row.", (
        "head -3 faq.csv", "phicli inspect faq.csv --model tiny")),
    Scene("Mend it", "`--fix` writes a clean copy. The table stays as it is.", (
        "phicli inspect faq.csv --model tiny --fix faq.clean.jsonl",)),
    Scene("Your own data on your own model", "A model is a folder in the form of Hugging Face. This one is a small "
          "Llama with random weights, so it knows nothing but what these rows teach.", (
        "ls my-model", "phicli run --model my-model --data faq.clean.jsonl --name bikes",
        'phicli chat "How do I look after the tyre?"')),
    Scene("A second adapter", "Conversations in the form of ShareGPT, this time step by step. The model that was made "
          "before gets a second adapter; nothing else is built again.", (
        "head -c 200 chats.json; echo", "phicli finetune --data chats.json --name talks --max-steps 40",
        "phicli optimize", 'phicli chat --compare "What do I do with the bell?"')),
    Scene("Look around", "What is there, whether it is up to date, and how it goes away again.", (
        "phicli list", "phicli status", "phicli rm my-model/talks --yes", "phicli list")),
    Scene("When something is wrong", "An error says what is wrong, where, and which command helps. The exit code is 2 "
          "for what was typed, 3 for what was given, 4 for what is missing.", (
        "phicli inspect fag.csv", "phicli quantise", "phicli finetune --max-step 50",
        "phicli chat --adapter bike hello", "phicli chat --model phi hello", "phicli config set finetune.max_stesp 50",
        "phicli quantize --model gpt2-folder", "phicli finetune --data preferences.jsonl")),
)


def write_inputs(folder: Path) -> None:
    """What a user might have: a table with faults, conversations, a model, and two things that cannot be used."""
    rows = [(question.format(part), f"Take your time. The {part}: {advice}. Then ride a short way and look again.")
            for part, advice in PARTS.items() for question in QUESTIONS]
    faults = [rows[3], ("When are you open?", ""),
              ("Where is the cafÃ© next door?", "Left of us. The cafÃ© opens at nine &amp; closes at six.")]
    with (folder / "faq.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *rows, *faults])
    talks = [{"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]}
             for asked, told in rows]
    (folder / "chats.json").write_text(json.dumps(talks, indent=1), encoding="utf-8")
    preferred = {"prompt": "Which bell?", "chosen": "The small one.", "rejected": "None."}
    (folder / "preferences.jsonl").write_text(f"{json.dumps(preferred)}\n" * 3, encoding="utf-8")
    (folder / "gpt2-folder").mkdir()
    (folder / "gpt2-folder" / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')


def checkout(folder: Path) -> None:
    """The files of this checkout that git knows, and new ones that it does not ignore."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True,
                           text=True, check=True).stdout.splitlines()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)


def play(folder: Path) -> str:
    """All scenes, in Markdown."""
    checkout(folder)
    home = folder.parent / "home"
    home.mkdir()
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PHICLI_")}
    terminal_of = {**mine, "HOME": str(home), "LANG": "C.UTF-8", "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
    parts = [BEFORE]
    for scene in SCENES:
        if scene.title == "Look at data of your own":
            write_inputs(folder)
            subprocess.run([folder / ".venv/bin/python", "-c", MODEL], cwd=folder, env=terminal_of, check=True,
                           capture_output=True)
        terminal = Terminal(folder, terminal_of)
        for command in scene.commands:
            print("$", command if isinstance(command, str) else command[0], flush=True)
            terminal.run(*([command] if isinstance(command, str) else command))
        seen = terminal.text().replace(str(folder.parent), "/home/you")
        parts.append(f"## {scene.title}\n{scene.text}\n\n```text\n{seen}```\n")
    return "\n".join(parts)


def picture(root: Path) -> str:
    """One question to the model as it was and to the adapter, side by side, in the colours of a terminal."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(root, Path(scratch) / "models" / "smollm2")
        program = Path(scratch) / "phicli"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m phicli "$@"\n')
        program.chmod(0o755)
        terminal = Terminal(Path(scratch), {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": scratch,
                                            "PATH": f"{scratch}:{os.environ['PATH']}"})
        terminal.run('phicli chat -q --root models/smollm2 --compare --max-new-tokens 61 \\\n'
                     '    "I have one day in Kyoto. What should I see?"')
        described = html.escape(re.sub(r"\s+", " ", terminal.text()))
        return terminal.svg("phicli").replace("<style>", f"<title>phicli chat --compare</title>"
                                              f"<desc>{described}</desc>\n<style>", 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="root of a finished lab; without it the picture is left as it is")
    given = parser.parse_args()
    if given.real:
        PICTURE.write_text(picture(given.real), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="phicli-") as scratch:
        (Path(scratch) / "phicli").mkdir()
        PAGE.write_text(play(Path(scratch) / "phicli"), encoding="utf-8")
