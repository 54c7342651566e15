"""Adding an adapter to a model that is in use, broken off at any moment, or after the other adapters' sources went."""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
from onnx_checkpoints import nearest_awq, random_adapter

from phicli import optimize
from phicli.artifacts import generations, stages
from phicli.errors import BadInput
from phicli.inference.session import Session

ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
IDS = [5, 6, 7, 8]


def add(root: Path, *adapters: str, layout: str = "fused", weights: str = "float", force: bool = False) -> Path:
    folder, _ = optimize(root=root, base=None, adapters=list(adapters), device="cpu", activations="fp32", head="int4",
                         output=None, adapter_layout=layout, adapter_weights=weights, force=force)
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, tiny) -> Path:
    """A checkpoint and two adapters, not to be changed."""
    folder = tmp_path_factory.mktemp("workshop")
    stages.write_manifest(nearest_awq(tiny, folder / "awq"), stages.Manifest("quantize", {}, {}))
    for name, rank in (("travel", 4), ("other", 20)):
        random_adapter(tiny, folder / name, r=rank, target_modules=ALL)
    return folder


@pytest.fixture
def root(workshop, tmp_path) -> Path:
    return Path(shutil.copytree(workshop, tmp_path / "root"))


def answers(folder: Path) -> dict[str, np.ndarray]:
    """Logits of every adapter that a new session finds; an adapter that does not work raises."""
    session = Session(folder)
    return {name: session.logits(IDS, name)[-1] for name in session.adapter_names()}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(np.allclose(found[n], wanted[n], atol=1e-3) for n in wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("layout", ["fused", "resident", "inputs"])
def test_kill_while_an_adapter_is_added(root, forks, layout):
    """kill -9 at each tenth of the time in which an adapter is added: the model holds the old adapters or all, each
    with its own answers and a manifest that fits, and the next command ends it."""
    folder = add(root, f"travel={root / 'travel'}", layout=layout)
    before = answers(folder)
    spare = shutil.copytree(folder, root / "spare")
    begun = time.monotonic()
    add(root, f"other={root / 'other'}", layout=layout)
    seconds, after = time.monotonic() - begun, answers(folder)
    assert set(after) == {"travel", "other"} and same({"travel": after["travel"]}, before)
    for tenth in range(1, 11):
        shutil.rmtree(folder)
        shutil.copytree(spare, folder)
        child = forks.start("optimize", "--root", root, "--adapter", f"other={root / 'other'}", "--device", "cpu",
                            "--activations", "fp32", "--head", "int4", "--adapter-layout", layout,
                            cwd=root, out=root.parent / "streams")
        time.sleep(seconds * tenth / 10)
        os.kill(child, signal.SIGKILL)
        forks.wait(child)
        stages.check_whole(folder)
        assert any(same(answers(folder), wanted) for wanted in (before, after))
    add(root, f"other={root / 'other'}", layout=layout)
    assert same(answers(folder), after)
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


def test_sessions_while_adapters_are_added(root):
    """Sessions that are open or opened while adapters are added and taken away, three times: none fails, each gives an
    adapter's own answers, and one whose graph lacks an adapter says so."""
    folder = add(root, f"travel={root / 'travel'}")
    wanted, early, unused = answers(folder)["travel"], Session(folder), Session(folder)
    held, faults, done, count = early.generator(64, "travel"), [], threading.Event(), 0

    def open_them() -> None:
        nonlocal count
        while not done.is_set():
            try:
                if not np.allclose(Session(folder).logits(IDS, "travel")[-1], wanted, atol=1e-3):
                    faults.append("another answer")
            except Exception as e:
                faults.append(repr(e))
            count += 1

    threads = [threading.Thread(target=open_them) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for name in ("one", "two", "three"):
            add(root, f"{name}={root / 'other'}")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == [] and count > 1
    held.append_tokens(IDS)  # of the model that was there first
    assert np.allclose(held.logits()[-1], wanted, atol=1e-3)
    assert np.allclose(early.logits(IDS, "travel")[-1], wanted, atol=1e-3)
    assert np.allclose(unused.logits(IDS, "travel")[-1], wanted, atol=1e-3)  # loaded only now
    with pytest.raises(BadInput, match="got adapters") as e:  # its graph does not hold that one
        early.load_adapter("three")
    assert e.value.hint == "open another session" and early.outdated
    other = answers(folder)["three"]
    assert np.allclose(other, answers(folder)["one"], atol=1e-3) and not np.allclose(other, wanted, atol=1e-3)


@pytest.mark.parametrize("force", [False, True], ids=["added to", "built anew"])
@pytest.mark.parametrize(("layout", "weights"), [("fused", "float"), ("fused", "int8"), ("resident", "float"),
                                                 ("resident", "int8"), ("inputs", "float")])
def test_an_adapter_whose_source_is_gone(root, layout, weights, force):
    """An adapter whose PEFT folder was removed, and the model gets another adapter or is built anew: it stays, with
    the same answers."""
    kind = {"layout": layout, "weights": weights}
    folder = add(root, f"travel={root / 'travel'}", **kind)
    before, have = answers(folder)["travel"], stages.read_manifest(folder)
    shutil.rmtree(root / "travel")
    for _ in range(2):
        add(root, f"other={root / 'other'}", **kind, force=force)
        found, manifest = answers(folder), stages.read_manifest(folder)
        assert found.keys() == {"travel", "other"} and not np.allclose(found["other"], before, atol=0.02)
        assert np.allclose(found["travel"], before, atol=0.05 if (layout, weights) == ("resident", "int8") else 2e-3)
        assert manifest.inputs["adapters/travel"] == have.inputs["adapters/travel"]
        assert manifest.quality["adapters"]["travel"]["rank"] == 4
        shutil.copytree(root / "other", root / "third", dirs_exist_ok=True)
        add(root, f"third={root / 'third'}", f"other={root / 'other'}", **kind)
        (folder / "adapters" / "third.onnx_adapter").unlink()


@pytest.mark.parametrize("name", ["model.onnx", "phicli.json"])
def test_an_adapter_that_can_neither_be_made_nor_read(root, name):
    """An adapter whose PEFT folder was removed, in a model that is damaged: exit code 3 and what to do, nothing
    changed, until the user gives the folder or removes the adapter's file."""
    folder = add(root, f"travel={root / 'travel'}")
    shutil.rmtree(root / "travel")
    with (folder / name).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadInput, match="adapter travel would be lost") as e:
        add(root, f"other={root / 'other'}")
    assert "remove adapters/travel.onnx_adapter" in e.value.hint and (folder / name).stat().st_size == 1000
    (folder / "adapters" / "travel.onnx_adapter").unlink()
    assert set(answers(add(root, f"other={root / 'other'}"))) == {"other"}


def test_a_system_that_cannot_switch_folders_at_once(root, monkeypatch):
    """A file system without links or the exchange of two folders: the adapter is added, the old ones stay."""
    folder = add(root, f"travel={root / 'travel'}")
    before = answers(folder)["travel"]

    def refuse(*args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(generations, "EXCHANGE", 1 << 30)
    add(root, f"other={root / 'other'}")
    assert np.allclose(answers(folder)["travel"], before, atol=1e-3)
