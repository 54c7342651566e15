"""Shared helpers: the command line run in-process through the real `main()`, and the built-in model."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from phicli.models import BUILT_IN


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd):
    """cli("quantize", "--model", "tiny") -> Outcome(code, out, err), through the real main()."""
    from phicli.cli import main

    def run(*argv: object) -> Outcome:
        capfd.readouterr()
        code = main([str(a) for a in argv])
        out, err = capfd.readouterr()
        return Outcome(int(code), out, err)

    return run


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The built-in model's folder."""
    return BUILT_IN / "tiny"


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch):
    """No setting of the person who runs the tests reaches them."""
    for name in [n for n in os.environ if n.startswith("PHICLI_")]:
        monkeypatch.delenv(name)
