"""The built wheel, installed without the checkout, from an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with phicli out of its wheel; the libraries are those of the tests."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, REPOSITORY], check=True)
    wheel, = place.glob("phicli-*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", place / "site", wheel], check=True)
    return place / "site"


def test_the_command_works_from_an_empty_folder(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed), "PHICLI_QUANTIZE_SAMPLES": "2", "PHICLI_QUANTIZE_SEQ_LEN": "64"}

    def phicli(*arguments):
        done = subprocess.run([installed / "bin" / "phicli", *arguments], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done

    assert phicli("init", "--model", "tiny", "--device", "cpu").stdout == "phicli.toml\n"
    seen = phicli("inspect").stdout
    assert seen.startswith("400 rows, 0 that cannot be used") and str(installed / "phicli" / "data") in seen
    assert {path.name for path in (installed / "phicli" / "serving" / "page").iterdir()} >= {"index.html", "chat.js"}
    made = phicli("quantize")
    assert made.stdout == "models/tiny/awq\n" and "next: phicli finetune" in made.stderr
    assert "tiny: awq" in phicli("list").stdout
