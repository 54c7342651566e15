"""Adapters that live in the graph: the same answers as everywhere, chosen by name, added without touching the base."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest
from onnx_checkpoints import Reference, compare, nearest_awq, peft_updates, random_adapter
from optimized import write_adapter

from phicli import optimize
from phicli.errors import BadInput
from phicli.export import fused, masked, resident
from phicli.export.adapters import check_adapter
from phicli.export.slots import LAYOUT_KEY, read_graph
from phicli.hardware.driver import gpu_count
from phicli.inference.conversation import Conversation
from phicli.inference.session import Session
from phicli.kernels.build import missing

TEXT = "Rome is a city in Italy. Where should I eat there, and what should I see first? Take the train early. " * 4


def build(root: Path, base: Path, adapters: dict[str, Path], **settings) -> Path:
    defaults = {"device": "cpu", "activations": "fp32", "head": "float", "adapter_layout": "resident",
                "adapter_weights": "float"}
    folder, _ = optimize(root=root, base=str(base), adapters=[f"{k}={v}" for k, v in adapters.items()],
                         **{**defaults, **settings})
    return folder


IN_GRAPH = ["resident", "fused"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tiny):
    root = tmp_path_factory.mktemp("adapters")
    adapters = {
        "travel": random_adapter(tiny, root / "peft-travel", r=8, lora_alpha=16,
                                 target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
        "other": random_adapter(tiny, root / "peft-other", r=3, lora_alpha=5, use_rslora=True,
                                target_modules=["qkv_proj", "gate_up_proj"], layers_to_transform=[1, 3]),
    }
    base = nearest_awq(tiny, root / "awq")
    return base, adapters, Reference.of_awq(tiny, base)


@pytest.fixture(scope="module", params=IN_GRAPH)
def made(request, sources, tmp_path_factory):
    folder = build(tmp_path_factory.mktemp(request.param), *sources[:2], adapter_layout=request.param)
    return folder, *sources


def layout_of(folder):
    return read_graph(folder)[0][LAYOUT_KEY]


def test_each_adapter_gives_its_own_answers_turn_by_turn(made):
    folder, _, adapters, reference = made
    session = Session(folder)
    ids = session.codec.encode_text(TEXT)
    plain, wanted = reference.logits(ids), {n: reference.logits(ids, peft_updates(f)) for n, f in adapters.items()}
    for name in (None, "travel", "other", None, "other", "travel"):
        kl, same = compare(plain if name is None else wanted[name], session.logits(ids, name))
        assert kl < 1e-6 and same >= 0.99, name
    assert compare(wanted["travel"], wanted["other"])[0] > 1e-2
    assert read_graph(folder)[0][resident.NAMES_KEY] == json.dumps(["travel", "other"])


def test_in_8_bits_an_adapter_is_nearly_the_same(made, tmp_path):
    folder, base, adapters, _ = made
    small = build(tmp_path, base, adapters, adapter_layout=layout_of(folder), adapter_weights="int8")
    exact, session = Session(folder), Session(small)
    ids = session.codec.encode_text(TEXT)
    for name in adapters:
        kl, same = compare(exact.logits(ids, name), session.logits(ids, name))
        assert 0 < kl < 2e-3 and same >= 0.95, (name, kl, same)
    sizes = [sum(p.stat().st_size for p in f.glob(resident.DATA + "*")) for f in (folder, small)]
    assert sizes[1] < (0.4 if layout_of(folder) == "resident" else 0.7) * sizes[0]  # of fp32, or of fp16


def test_rows_of_a_batch_may_have_different_adapters(made, tmp_path):
    """An adapter's file may carry a table of its own (one row of it per row of the batch), or a number for each."""
    for row, wanted in zip(*rows_and_each_alone(Session(made[0]), tmp_path), strict=True):
        np.testing.assert_allclose(row, wanted, atol=2e-3)


def rows_and_each_alone(session: Session, scratch: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of a batch of four rows with adapters of their own, and of each row by itself."""
    folder, ids = session.folder, np.asarray(session.codec.encode_text(TEXT)[:24], np.int32)
    alone = [session.logits(ids, name) for name in ("other", None, "travel", "other")]
    names, file = [2, 0, 1, 2], scratch / "rows.onnx_adapter"
    if layout_of(folder) == "resident":
        table = next(t for t in read_graph(folder)[1].initializer if t.name == masked.TABLE)
        rows = np.frombuffer(table.raw_data, np.float32).reshape(table.dims)[names]
        write_adapter(file, {masked.TABLE: rows, masked.FIRST: np.array([0]), masked.LAST: np.array([4])})
    else:
        write_adapter(file, {fused.ID: np.array(names)})
    session.load_adapter("other")
    model = session._model
    adapters = og.Adapters(model)
    adapters.load(str(file), "rows")
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=32, batch_size=4)
    generator = og.Generator(model, params)
    generator.set_active_adapter(adapters, "rows")
    generator.append_tokens(np.stack([ids] * 4))
    return np.asarray(generator.get_output("logits"), np.float32), alone


@pytest.mark.skipif(bool(missing("cpu")), reason=f"{missing('cpu')}")
@pytest.mark.parametrize("weights", ["float", "int8"])
def test_fused_adapters_give_the_same_answers_without_a_compiler(sources, tmp_path, monkeypatch, weights):
    base, adapters, _ = sources
    folder = build(tmp_path, base, adapters, adapter_layout="fused", adapter_weights=weights)
    with_library = Session(folder)
    ids = with_library.codec.encode_text(TEXT)
    wanted = {name: with_library.logits(ids, name) for name in ("travel", None, "other")}
    rows, _ = rows_and_each_alone(with_library, tmp_path)
    monkeypatch.setattr("phicli.kernels.build._compiler", lambda: None)
    without = Session(folder)
    for name, logits in wanted.items():
        np.testing.assert_allclose(without.logits(ids, name), logits, atol=1e-3)
    found, alone = rows_and_each_alone(without, tmp_path)
    np.testing.assert_allclose(found, rows, atol=1e-3)
    np.testing.assert_allclose(found, alone, atol=2e-3)
    assert np.abs(wanted["travel"] - wanted["other"]).max() > 0.1
    talk = Conversation(without, adapter="other", max_new_tokens=4)
    assert talk.ask("Where should I eat in Rome?").text


def test_adding_one_writes_a_small_file_and_leaves_the_base(made, tiny, tmp_path):
    folder, base, adapters, _ = made
    own = tmp_path / "onnx-ao"
    shutil.copytree(folder, own)
    before = {p.name: p.stat().st_mtime_ns for p in own.iterdir()}
    old_files = {p.name: p.read_bytes() for p in (own / "adapters").iterdir()}
    late = random_adapter(tiny, tmp_path / "peft-late", r=4, lora_alpha=8, target_modules=["o_proj"])
    build(tmp_path, base, {**adapters, "late": late}, adapter_layout=layout_of(folder))
    after = {p.name: p.stat().st_mtime_ns for p in own.iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    data = {name for name in changed if name.startswith(resident.DATA)}
    assert changed - data == {"model.onnx", "phicli.json", "adapters"} and len(data) == 1
    assert len([name for name in after if name.startswith(resident.DATA)]) == 1
    for name, content in old_files.items():
        assert (own / "adapters" / name).read_bytes() == content  # ids stay
    session, ids = Session(own), Session(own).codec.encode_text(TEXT)
    np.testing.assert_allclose(session.logits(ids, "travel"), Session(folder).logits(ids, "travel"), atol=1e-3)
    assert session.adapter_names() == ["late", "other", "travel"]


@pytest.mark.parametrize("made", IN_GRAPH[1:], indirect=True)
def test_matrices_as_earlier_versions_wrote_them_are_stale(made, tmp_path):
    folder, base, adapters, _ = made
    own = shutil.copytree(folder, tmp_path / "onnx-ao")
    manifest = json.loads((own / "phicli.json").read_text())
    manifest["settings"]["adapter_weights"] = "float"
    (own / "phicli.json").write_text(json.dumps(manifest))
    build(tmp_path, base, adapters, adapter_layout="fused")
    assert json.loads((own / "phicli.json").read_text())["settings"]["adapter_weights"] == "fp16"


def test_no_adapter_at_all(made, tiny, tmp_path):
    _, base, _, reference = made
    session = Session(build(tmp_path, base, {}, adapter_layout=layout_of(made[0])))
    ids = session.codec.encode_text(TEXT)
    assert compare(reference.logits(ids), session.logits(ids))[0] < 1e-6
    with pytest.raises(BadInput, match="no adapter 'travel'"):
        session.load_adapter("travel")


def test_a_file_of_another_model_is_refused(made, tmp_path):
    folder, *_ = made
    wrong = tmp_path / "other.onnx_adapter"
    shutil.copy(folder / "adapters" / "travel.onnx_adapter", wrong)
    with pytest.raises(BadInput, match="not an adapter of this model"):
        check_adapter(folder, wrong)


def test_options_that_do_not_go_together(cli, tmp_path):
    done = cli("optimize", "--root", tmp_path, "--device", "cuda", "--cuda-graph", "--adapter-layout", "inputs")
    assert done.code == 2 and "--adapter-layout fused or resident" in done.err
    done = cli("optimize", "--root", tmp_path, "--adapter-layout", "inputs", "--adapter-weights", "int8")
    assert done.code == 2 and "--adapter-layout resident" in done.err


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")
def test_a_cuda_graph_changes_no_answer_and_adapters_are_swapped_in_one_chat(made, tmp_path):
    model, base, adapters, reference = made
    layout, answers = layout_of(model), []
    for graph in (True, False):
        folder = build(tmp_path / str(graph), base, adapters, device="cuda", adapter_layout=layout,
                       activations="int8", cuda_graph=graph)
        options = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
        assert options["provider_options"][0]["cuda"]["enable_cuda_graph"] == str(int(graph))
        session = Session(folder, "cuda")
        ids = session.codec.encode_text(TEXT)
        for name in (None, "travel", "other"):
            wanted = reference.logits(ids, peft_updates(adapters[name]) if name else None)
            kl, same = compare(wanted, session.logits(ids, name))
            assert kl < 1e-3 and same >= 0.98, name
        talk, said = Conversation(session, adapter="travel", max_new_tokens=24), []
        for name in ("travel", "other", None, "travel", "other"):
            talk.use_adapter(name)
            said.append(talk.ask("Where should I eat in Rome?").text)
        answers.append(said)
    assert answers[0] == answers[1]
    assert len({*answers[0][:3]}) == 3
