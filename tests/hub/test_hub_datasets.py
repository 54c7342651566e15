"""Data sets of the hub: in a cache laid out as huggingface_hub does, and from a server that talks as the hub does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from served_hub import COMMIT, served

OLDER = "b" * 40
FIND = """
import json, sys
from phicli.errors import PhicliError
from phicli.hub.datasets import find_sources
for name, split in json.loads(sys.argv[1]):
    try:
        found = [[str(path), weight] for path, weight in find_sources([name], split)]
    except PhicliError as e:
        found = f"{type(e).__name__}: {e.message}"
    print(json.dumps(found))
"""


def find(home, *asked, **environment):
    """What is found for each pair of name and split, by a process of its own, in the folder above the cache."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), **environment}
    done = subprocess.run([sys.executable, "-c", FIND, json.dumps(asked)], cwd=home.parent, text=True, check=True,
                          stdout=subprocess.PIPE, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def home(tmp_path):
    """A cache with one data set of two revisions."""
    place = tmp_path / "home" / "hub" / "datasets--owner--name"
    for revision, commit, names in (("main", COMMIT, ["data/train-0.jsonl", "data/test-0.jsonl"]),
                                    ("refs/pr/1", OLDER, ["all/train/0000.jsonl", "few/train/0000.jsonl"])):
        (place / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (place / "refs" / revision).write_text(commit)
        for name in names:
            blob = place / "blobs" / f"{commit[:8]}{name.replace('/', '')}"
            blob.parent.mkdir(exist_ok=True)
            blob.write_text(json.dumps({"text": name}) + "\n")
            link = place / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return tmp_path / "home"


CACHED = [
    ("owner/name", "train", (COMMIT, "data/train-0.jsonl", 1)),
    ("owner/name:2", "test", (COMMIT, "data/test-0.jsonl", 2)),
    (f"owner/name@{COMMIT}", "test", (COMMIT, "data/test-0.jsonl", 1)),
    ("owner/name/few@refs/pr/1:0.5", "train", (OLDER, "few/train/0000.jsonl", 0.5)),
]


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_cached_data_set_needs_no_hub(home, environment):
    expected = [[[str(home / "hub/datasets--owner--name/snapshots" / commit / file), weight]]
                for _, _, (commit, file, weight) in CACHED]
    assert find(home, *[(name, split) for name, split, _ in CACHED], **environment) == expected


FAILURES = [
    ("owner/other", "Missing: no such file or folder, and not in the hub's cache; HF_HUB_OFFLINE"),
    ("owner/name@v9", "Missing: no such file or folder, and not in the hub's cache; HF_HUB_OFFLINE"),
    ("owner/name/none", "BadInput: the data set has no folder none"),
    ("owner/name@refs/pr/1", "UsageError: several data sets are in it: all, few"),
    ("owner/name:0", "UsageError: a weight is a number over 0"),
    ("owner/rows.jsonl", "BadInput: no such file or folder"),
    ("./owner/name", "BadInput: no such file or folder"),
    ("owner/name/../..", "BadInput: no such file or folder"),
    ("home/name/folder", "BadInput: no such file or folder"),
    ("name", "BadInput: no such file or folder"),
    ("-owner/--name", "BadInput: no such file or folder, and no such data set on huggingface.co"),
    ("", "BadInput: no such file or folder"),
]


def test_what_cannot_be_found(home):
    found = find(home, *[(name, "train") for name, _ in FAILURES], HF_HUB_OFFLINE="1")
    for outcome, (_, expected) in zip(found, FAILURES, strict=True):
        assert outcome.startswith(expected)


def test_transformers_offline_holds_too(home):
    with served("datasets", FILES) as (endpoint, asked):
        (outcome,) = find(home, ("owner/served", "test"), HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="",
                          TRANSFORMERS_OFFLINE="1")
    assert "TRANSFORMERS_OFFLINE keeps it from being fetched" in outcome and not asked


def test_a_hub_that_cannot_be_reached(home):
    (outcome,) = find(home, ("owner/other", "train"), HF_ENDPOINT="http://127.0.0.1:9")
    assert outcome.startswith("RemoteError: huggingface.co: ")


def test_what_is_on_this_machine_comes_first(home, tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    asked = ("owner/name", "train"), ("rows.jsonl:2", "test"), ("-", "test"), ("rows.jsonl", "tset")
    assert find(home, *asked) == [[["owner/name/rows.csv", 1]], [["rows.jsonl", 2]], [["-", 1]],
                                  "UsageError: no such split: 'tset'"]


FILES = {"train.csv": b"a,b\n1,2\n", "test.csv": b"a,b\n3,4\n", "load.py": b"raise SystemExit", "model.bin": b"x"}


def test_only_data_files_are_fetched(home):
    with served("datasets", FILES) as (endpoint, asked):
        ((path, _),), missing = find(home, ("owner/served", "test"), ("owner/none", "train"), HF_ENDPOINT=endpoint)
    assert Path(path).read_bytes() == FILES["test.csv"]
    assert {name for name in FILES if any(name in path for path in asked)} == {"train.csv", "test.csv"}
    assert missing.startswith("BadInput: no such file or folder, and no such data set on huggingface.co")
    (again,) = find(home, ("owner/served", "test"), HF_HUB_OFFLINE="1")
    assert again == [[path, 1]]
