"""A model as GGUF, by llama.cpp's own converter."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from phicli.errors import BadInput, Missing

SCRIPT = "convert_hf_to_gguf.py"
COMMANDS = (SCRIPT, "convert-hf-to-gguf")  # llama.cpp's own name, and that of packages which carry it
MAGIC = b"GGUF"


def find_converter(given: str | None) -> list[str]:
    """The command line that llama.cpp's converter begins with: a script runs in this Python.

    Raises:
        Missing: there is none.
    """
    place = given or next(filter(None, map(shutil.which, COMMANDS)), None)
    if place is None or not Path(place).is_file():
        raise Missing("no such converter" if given else f"no {SCRIPT} of llama.cpp's on PATH", where=given,
                      hint="git clone https://github.com/ggml-org/llama.cpp && pip install gguf sentencepiece && "
                           f"phicli export --to gguf --converter llama.cpp/{SCRIPT}")
    return [sys.executable, place] if place.endswith(".py") else [place]


def convert_to_gguf(converter: list[str], model: Path, file: Path, outtype: str) -> None:
    """Write a GGUF file of an unquantized Hugging Face folder.

    Raises:
        BadInput: the converter cannot take this model; its last line says why, all of it is in the log.
    """
    done = subprocess.run([*converter, str(model), "--outfile", str(file), "--outtype", outtype], check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    logging.getLogger(__name__).info(done.stdout)
    with_magic = file.is_file() and file.open("rb").read(len(MAGIC)) == MAGIC
    if done.returncode or not with_magic:
        last = (done.stdout.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise BadInput(f"llama.cpp's converter cannot take this model: {last[:300]}", where=model)
