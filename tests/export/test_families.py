"""Every family that phicli takes goes through the whole lab; every other is refused by the first command."""

import shutil
from pathlib import Path

import pytest
from family_lab import run_lab
from family_models import FAMILIES, REFUSED, write_refused

from phicli.architectures import ARCHITECTURES

MOST = 1e-4  # KL of an output projection in 8 bits; rotary tables of another base or a lost window give 1e-3 and more
MOST_BY_DEFAULT = 1e-2  # of activations in int8


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_in_the_whole_lab(tmp_path, tiny, family):
    kl = run_lab(family, tmp_path, tiny)
    assert kl.pop("default") < MOST_BY_DEFAULT, kl
    assert max(kl.values()) < MOST, kl
    assert max(kl["far"], kl["decoded"]) < 2 * kl["near"], kl  # a window of one token more gives ten times as much


def test_every_known_family_has_been_through_it():
    assert {family.kind for family in FAMILIES} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", ["quantize", "finetune", "optimize"])
def test_a_family_that_is_refused(cli, tmp_path, tiny, name, step):
    model = write_refused(name, shutil.copytree(tiny, tmp_path / "model"))
    found = cli(step, "--model" if step == "quantize" else "--base", model, "--root", tmp_path / "root")
    assert found.code == 3 and "Traceback" not in found.err, found.err
    assert found.err.count("error: ") == 1 and found.err.count("\n") < 4, found.err


def test_the_page_has_every_family():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert [name for name in (*(f.name for f in FAMILIES), *REFUSED) if f"\n| {name} |" not in page] == []
