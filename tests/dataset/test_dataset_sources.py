"""Files of a split in folders as people and libraries lay them out, and weights."""

import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from phicli.azure.job_order import FILES, INPUT, Order
from phicli.config.azure import JobConfig
from phicli.config.layers import SETTINGS, Settings
from phicli.dataset import read_rows
from phicli.dataset.sources import Source, find_files, split_weight
from phicli.errors import BadInput, UsageError
from phicli.hub.datasets import find_sources
from phicli.progress import SILENT, Silent
from phicli.steps.lab import run_lab


def folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "a"}\n')
    return root


def found(root, split="train"):
    return [path.relative_to(root).as_posix() for path in find_files(root, split)]


@pytest.mark.parametrize(("name", "expected"), [
    ("a.jsonl:2", ("a.jsonl", 2)), ("a.jsonl:0.5", ("a.jsonl", 0.5)), ("a.jsonl:.5", ("a.jsonl", 0.5)),
    ("a.jsonl", ("a.jsonl", 1)), ("owner/name@main:3", ("owner/name@main", 3)), ("-:2", ("-", 2)), ("b:2", ("b:2", 1)),
    ("b:2:2", ("b:2", 2)), ("c:\\rows", ("c:\\rows", 1)), (":2", (":2", 1)),
])
def test_weights(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(folder(tmp_path, "b:2"))
    assert split_weight(name) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_comes_with_the_way_to_stdin(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="but a pipe, which can be read once") as caught:
        find_sources([str(tmp_path / "pipe")])
    assert "- with what the pipe gives on stdin, as in: phicli finetune --data -" in caught.value.hint


def test_a_run_reads_no_stdin():
    with pytest.raises(UsageError, match="stdin can be read once"):
        next(run_lab(Settings(), {"model": "tiny", "data": ["-"]}, None, SILENT))


@pytest.mark.parametrize("name", ["a.jsonl:0", "a.jsonl:0.0", f"a.jsonl:{'9' * 400}"])
def test_a_weight_that_is_none(name):
    with pytest.raises(UsageError, match="a number over 0"):
        split_weight(name)


@pytest.mark.parametrize(("names", "train", "validation", "test"), [
    (["train.jsonl", "valid.jsonl", "test.jsonl"], ["train.jsonl"], ["valid.jsonl"], ["test.jsonl"]),
    (["my-train.csv.gz", "my_dev.csv.gz"], ["my-train.csv.gz"], ["my_dev.csv.gz"], None),
    (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/validation-0.parquet",
      "README.md", "dataset_infos.json", "load.py"],
     ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
     ["data/validation-0.parquet"], None),
    (["train/a.json", "train/b.json", "eval/a.json", "test/x.json"], ["train/a.json", "train/b.json"], ["eval/a.json"],
     ["test/x.json"]),
    (["TRAIN1.jsonl", "Train2.jsonl"], ["TRAIN1.jsonl", "Train2.jsonl"], None, None),
    (["b.jsonl", "a/c.csv", "latest.jsonl"], ["a/c.csv", "b.jsonl", "latest.jsonl"], None, None),
    (["rows.jsonl", "test.jsonl"], ["rows.jsonl"], None, ["test.jsonl"]),
    (["train.jsonl", "extra.jsonl", ".cache/train.jsonl", "_old/train.jsonl"], ["train.jsonl"], None, None),
])
def test_splits_of_a_folder(tmp_path, names, train, validation, test):
    folder(tmp_path / "set", *names)
    for split, expected in (("train", train), ("validation", validation), ("dev", validation), ("test", test)):
        if expected is not None:
            assert sorted(found(tmp_path / "set", split)) == expected
        else:
            with pytest.raises(BadInput, match=r"no files of the split \w+ in it, only of train \("):
                found(tmp_path / "set", split)


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.mark.parametrize(("names", "left_out"), [
    (["faq.jsonl", "eval-of-lathe.jsonl", "test_bench_manual.jsonl", "latest.jsonl"],
     "2 of 4 files {}: eval-of-lathe.jsonl (validation), test_bench_manual.jsonl (test)"),
    (["faq.jsonl", "test/more.jsonl"], "1 of 2 files {}: test/more.jsonl (test)"),
    (["train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow", "dataset_dict.json"],
     "1 of 2 files {}: test/data-00000-of-00001.arrow (test)"),
    (["train.jsonl", *(f"{name}.jsonl" for name in "abcdef")],
     "6 of 7 files {}: a.jsonl (no split), b.jsonl (no split), c.jsonl (no split), "
     "d.jsonl (no split), e.jsonl (no split), …"),
    (["a.jsonl", "b.csv"], None),
])
def test_what_is_left_out_is_told(tmp_path, names, left_out):
    told = Told()
    find_files(folder(tmp_path, *names), "train", told)
    why = "are not taken for training, since by their names they are not of the split train"
    assert told.warnings == ([f"{tmp_path}: {left_out.format(why)}"] if left_out else [])
    if left_out and "test" in left_out:  # nor is it for those who ask for another split
        find_files(tmp_path, "test", told)
        assert len(told.warnings) == 1


def test_the_folder_above_says_nothing(tmp_path):
    assert found(folder(tmp_path / "test", "rows.jsonl")) == ["rows.jsonl"]


def test_a_folder_that_datasets_wrote(tmp_path):
    train, test = ([{"text": f"{name} {i}"} for i in range(5)] for name in ("train", "test"))
    DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test)).save_to_disk(tmp_path / "set")
    for split, rows in (("train", train), ("test", test)):
        (path,) = find_files(tmp_path / "set", split)
        assert [row.fields for row in read_rows(path)] == rows


@pytest.mark.parametrize(("names", "message"), [
    (["all/train.jsonl", "few/train.jsonl"], "several data sets are in it: all, few"),
    (["train.jsonl", "train.csv"], "in several containers: .csv, .jsonl"),
])
def test_what_would_count_rows_twice_is_refused(tmp_path, names, message):
    with pytest.raises(UsageError, match=message):
        found(folder(tmp_path, *names))


def test_nothing_to_find(tmp_path):
    with pytest.raises(BadInput, match="no files of rows"):
        found(folder(tmp_path, "README.md", "state.json"))
    with pytest.raises(UsageError, match="no such split: 'trian'"):
        found(tmp_path, "trian")


def test_what_phicli_made_is_no_data(tmp_path):
    folder(tmp_path, "rows.jsonl", "models/phicli-last.json", "models/tiny/phicli-model.json",
           "models/tiny/evaluation.json", "models/tiny/awq/phicli.json", "models/tiny/awq/training.json",
           "built/phicli.json", "built/adapters/a.json")
    assert found(tmp_path) == ["rows.jsonl"]
    folder(tmp_path / "models" / "tiny", "mine.jsonl")
    assert found(tmp_path / "models" / "tiny") == ["mine.jsonl"]  # a root that is named itself
    with pytest.raises(BadInput, match="no files of rows"):
        found(tmp_path / "models" / "tiny" / "awq")


def test_links_to_folders_are_not_followed(tmp_path):
    folder(tmp_path, "train.jsonl")
    (tmp_path / "round").symlink_to(tmp_path)
    assert found(tmp_path) == ["train.jsonl"]


def test_a_pattern_names_files_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "test.jsonl", "below/c.jsonl", "[x].jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}\n")
    Path("d.jsonl").mkdir()
    assert find_sources(["?.jsonl:2"]) == [Source(Path("a.jsonl"), 2.0), Source(Path("b.jsonl"), 2.0)]
    assert [str(one.path) for one in find_sources(["**/[ct]*.jsonl"])] == ["below/c.jsonl", "test.jsonl"]
    assert [str(one.path) for one in find_sources(["[x].jsonl"])] == ["[x].jsonl"]  # a file of that very name
    with pytest.raises(BadInput, match="no such file or folder"):
        find_sources(["*.csv"])
    monkeypatch.chdir(tmp_path / "below")
    Path("../phicli.toml").write_text('data = "?.jsonl"\n')
    assert Settings().get(SETTINGS["data"]).value == ("../?.jsonl",)
    order = Order("finetune", [], Path(), JobConfig())
    assert order.take("data", SETTINGS["data"], ("../?.jsonl:2",)) == (
        f"{INPUT}/{FILES}/0/a.jsonl:2", f"{INPUT}/{FILES}/1/b.jsonl:2") and len(order.taken) == 2
