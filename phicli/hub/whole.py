"""What helps against damaged files of a model: whole ones."""

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from phicli.errors import BadInput

Found = TypeVar("Found")
A_MODEL = "a folder with config.json, tokenizer.json and *.safetensors, or an id like microsoft/Phi-3.5-mini-instruct"


def cured(check: Callable[[Path], Found]) -> Callable[[Path], Found]:
    """A check of a model's folder; its errors that have no hint get the way to whole files."""
    @functools.wraps(check)
    def checked(folder: Path) -> Found:
        try:
            return check(folder)
        except BadInput as e:
            e.hint = e.hint or whole_files(folder)
            raise

    return checked


def whole_files(folder: Path) -> str:
    """How the files of a model are had anew: of one in the hub's cache by a command, of another in words."""
    cached = re.fullmatch(r"models--(.+)--(.+)", folder.parent.parent.name)
    if cached and folder.parent.name == "snapshots":
        return shlex.join(["hf", "download", f"{cached[1]}/{cached[2]}", "--force-download"])
    fetch = shlex.join(["hf", "download", "OWNER/NAME", "--local-dir", str(folder)])
    return f"all files of the model anew, from where they came ({fetch}, if from the hub)"
