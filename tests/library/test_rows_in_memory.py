"""Rows that a program has, in place of the names of files."""

import json
from pathlib import Path

import datasets
import numpy
import pandas
import pyarrow
import pytest

import phicli
from phicli.dataset.in_memory import as_named
from phicli.errors import BadInput, UsageError

ROWS = [{"prompt": f"Where is city {i}?", "response": f"In land {i}, by the sea."} for i in range(12)]
TABLE = pandas.DataFrame(ROWS)
SPLIT = datasets.Dataset.from_list(ROWS)


def written(value):
    with as_named(value) as name:
        return [json.loads(line) for line in Path(name).read_bytes().splitlines()]


@pytest.mark.parametrize("value", [ROWS, tuple(ROWS), iter(ROWS), TABLE, SPLIT, pyarrow.table(TABLE)],
                         ids=["list", "tuple", "iterator", "pandas", "datasets", "pyarrow"])
def test_each_kind_of_rows_is_the_same_file(value):
    assert written(value) == ROWS


def test_what_tables_hold_is_said_in_json():
    row = {"n": numpy.int64(3), "list": numpy.array([1.5, 2]), "none": float("nan"), "text": "ä\u2028",
           "day": pandas.Timestamp("2026-01-02"), 4: {"in": (1, None)}}
    assert written([row]) == [{"n": 3, "list": [1.5, 2.0], "none": None, "text": "ä\u2028",
                               "day": "2026-01-02T00:00:00", "4": {"in": [1, None]}}]


@pytest.mark.parametrize("value", ["rows.jsonl", Path("rows.jsonl"), None, ["a.jsonl", "b.jsonl"], ()])
def test_names_stay_names(value):
    with as_named(value) as named:
        assert named is value


@pytest.mark.parametrize(("value", "error", "message"), [
    ([{"prompt": {1, 2}}], BadInput, "row 1 cannot be said in JSON"),
    ([*ROWS, "text"], BadInput, "row 13 is str, and a dict is wanted"),
    (datasets.DatasetDict(train=SPLIT, test=SPLIT), UsageError, "several splits: train, test"),
], ids=["set", "text", "splits"])
def test_what_can_be_no_file_is_refused(value, error, message):
    with pytest.raises(error, match=message), as_named(value):
        raise AssertionError


def test_steps_take_them(tmp_path):
    assert phicli.inspect(ROWS, model="tiny")["rows"] == phicli.inspect(data=TABLE, model="tiny")["rows"] == 12
    settings = {"root": tmp_path, "base": "tiny", "max_steps": 1, "eval_split": 0, "device": "cpu"}
    first = phicli.finetune("tiny", data=ROWS, **settings)
    again = phicli.finetune("tiny", data=SPLIT, **settings)
    assert again.manifest == first.manifest, "the same rows, so it is up to date"
    other = phicli.finetune("tiny", data=ROWS[1:], **settings)
    assert other.manifest.inputs["data"] != first.manifest.inputs["data"]
