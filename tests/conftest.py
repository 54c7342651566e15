"""Shared helpers: the command line run in-process through the real `main()`, and the built-in model."""

import atexit
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import Forks

from phicli.hub.models import BUILT_IN
from phicli.libraries import subdued

SUBDUED = subdued()  # kept, or it would end at once
SUBDUED.__enter__()  # no test asks a hub, whatever it imports
atexit.register(SUBDUED.__exit__, None, None, None)

# Ignored in a shell's background job, and under nohup; processes made here would inherit that.
for _name, _usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(getattr(signal, _name, signal.SIGINT)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _usual)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd):
    """cli("quantize", "--model", "tiny") -> Outcome(code, out, err), through the real main()."""
    from phicli.cli.main import main

    def run(*argv: object) -> Outcome:
        capfd.readouterr()
        before = os.environ.get("PHICLI_CONFIG")
        code = main([str(a) for a in argv])
        if before is None:
            os.environ.pop("PHICLI_CONFIG", None)  # where --config leaves its file for the rest of a process
        out, err = capfd.readouterr()
        return Outcome(int(code), out, err)

    return run


@pytest.fixture(scope="session")
def forks():
    """Starts commands as processes of their own that need not import anything."""
    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The built-in model's folder."""
    return BUILT_IN / "tiny"


@pytest.fixture(scope="session")
def data_file() -> Path:
    """The travel rows of the lab."""
    return Path(__file__).parents[1] / "data" / "data_sample_travel.jsonl"


@pytest.fixture(scope="session")
def two_graphs(tiny, tmp_path_factory) -> Path:
    """A root with `onnx-ao` that has a graph with two adapters in it, and one without. To be left as it is."""
    from onnx_checkpoints import nearest_awq, random_adapter

    from phicli import optimize

    root = tmp_path_factory.mktemp("two_graphs")
    projections = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    adapters = {name: random_adapter(tiny, root / name, r=rank, lora_alpha=4 * rank, target_modules=projections)
                for name, rank in (("cooking", 4), ("travel", 12))}
    optimize(root=root, base=str(nearest_awq(tiny, root / "awq")), adapters=[f"{k}={v}" for k, v in adapters.items()],
             device="cpu", activations="fp32", head="float", adapter_layout="fused")
    return root


@pytest.fixture(scope="session")
def optimized(tiny, tmp_path_factory) -> Path:
    """A root with `onnx-ao`, made from the built-in model, with two adapters. To be left as it is."""
    from optimized import build

    root = tmp_path_factory.mktemp("optimized")
    build(tiny, root / "onnx-ao", root / "cache")
    return root


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch):
    """No setting of the person who runs the tests reaches them."""
    for name in [n for n in os.environ if n.startswith("PHICLI_")]:
        monkeypatch.delenv(name)


def pytest_runtest_logreport(report):
    """A failure is told when it happens: a run that is killed has no summary."""
    if report.failed:
        print(f"\n{report.nodeid} failed\n{report.longreprtext}", *map("\n".join, report.sections), sep="\n",
              file=sys.__stderr__, flush=True)


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, with the reason, where torch has no CUDA device."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(scope="session")
def tiny_awq(tmp_path_factory, tiny) -> Path:
    """The built-in model, quantized by the command's own library function with few samples."""
    from phicli import quantize

    root = tmp_path_factory.mktemp("tiny")
    return quantize("tiny", device="cpu", samples=32, seq_len=256, root=root).folder


@pytest.fixture(scope="session")
def finished_lab(tmp_path_factory, tiny, data_file) -> Path:
    """A folder with all of a small lab: model, rows, held-out rows, and the results in the root `lab`. To be left as
    it is."""
    from phicli import evaluate, finetune, optimize, quantize

    folder = tmp_path_factory.mktemp("finished")
    given = {"model": str(shutil.copytree(tiny, folder / "model")), "root": folder / "lab"}
    rows = data_file.read_text().splitlines(keepends=True)
    for name, part in (("rows", rows[:40]), ("questions", rows[40:44])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    quantize(**given, device="cpu", samples=4, seq_len=128)
    finetune(**given, device="cpu", data=folder / "rows.jsonl", max_steps=4, lora_r=4, eval_steps=2)
    optimize(**given, device="cpu")
    evaluate(**given, device="cpu", eval_data=folder / "questions.jsonl")
    return folder
