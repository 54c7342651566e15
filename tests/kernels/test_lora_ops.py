"""The ops of our own: the sums that they compute, the library that brings them, and where they are not to be had."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_checkpoints import nearest_awq, random_adapter

from phicli import optimize
from phicli.errors import BadInput, Missing
from phicli.export.fused import DOMAIN
from phicli.export.matrices import in_blocks
from phicli.export.portable import functions
from phicli.hardware.driver import gpu_count
from phicli.inference.session import Session
from phicli.kernels import build

RANKS = [16, 64, 48]
needs_compiler = pytest.mark.skipif(bool(build.missing("cpu")), reason=f"{build.missing('cpu')}")
# Device, activations, matrices, and by what: the library's ops, the same without the processor's vectors, functions.
ON_CPU = [(np.float32, "fp16"), (np.float32, "int8"), (np.float16, "fp16")]
KINDS = [*(pytest.param("cpu", *kind, by, marks=needs_compiler) for kind in ON_CPU for by in ("vectors", "loops")),
         *(pytest.param("cpu", *kind, "functions") for kind in ON_CPU),
         *(pytest.param("cuda", np.float16, "fp16", by, marks=[
             pytest.mark.gpu, pytest.mark.skipif(not gpu_count(), reason="no NVIDIA GPU")])
           for by in ("vectors", "functions"))]
ON_BOTH = [pytest.param("cpu", np.float32, marks=needs_compiler),
           pytest.param("cuda", np.float16, marks=pytest.mark.gpu)]


class Ops:
    """A graph of LoraDown, LoraUp and LoraGatedUp, and what they should give, in float64."""

    def __init__(self, device: str, dtype: type, inputs: int, outputs: int, matrices: str = "fp16",
                 library: bool = True, ends: tuple[list[int], list[int]] | None = None):
        self.dtype, self.int8 = dtype, matrices == "int8"
        rng = np.random.default_rng(0)
        self.rng, self.inputs, self.outputs = rng, inputs, outputs
        self.ends = ends or ([outputs], [outputs])
        segments = len(self.ends[0])
        self.a = [self.matrix(segments * rank, inputs) for rank in RANKS]
        self.b, self.b2 = ([self.matrix(outputs, rank) for rank in RANKS] for _ in range(2))
        lanes = 8 if dtype == np.float32 else 1
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

        def value(name, *dims):
            return helper.make_tensor_value_info(name, kind, ["batch", "tokens", *dims])

        def op(name, *between, out):
            down = name == "LoraDown"
            own = {} if down or dtype == np.float16 else dict(zip(("ends", "ends2"), self.ends, strict=True))
            return helper.make_node(name, ["id", *between], [out], domain=DOMAIN,
                                    ranks=[rank * segments for rank in RANKS] if down else RANKS, **own)

        graph = helper.make_graph(
            [op("LoraDown", "x", "a", out="h"), op("LoraUp", "h", "base", "b", out="y"),
             op("LoraGatedUp", "h", "base", "b", "up", "b2", out="z")], "ops",
            [helper.make_tensor_value_info("id", TensorProto.INT64, ["n"]), value("x", inputs), value("base", outputs),
             value("up", outputs)],
            [value("y", outputs), value("z", outputs)],
            [numpy_helper.from_array(np.concatenate([in_blocks(part, lanes, self.int8) for part in parts]), name)
             for name, parts, lanes in (("a", self.a, 1), ("b", self.b, lanes), ("b2", self.b2, lanes))],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if library:
            options.register_custom_ops_library(str(build.ops_library(device)))
        if device == "cuda":
            onnxruntime.preload_dlls()
        providers = ["CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9,
                                  functions=functions(DOMAIN, 17, len(RANKS), kind, lanes, self.int8,
                                                      self.dtype == np.float32))
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)

    def random(self, *shape: int) -> np.ndarray:
        return (0.1 * self.rng.standard_normal(shape)).astype(self.dtype)

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        """One that is not rounded when it is written down."""
        if not self.int8:
            return self.random(rows, columns).astype(np.float16)
        integers = self.rng.integers(-127, 128, (rows, columns))
        integers[:, 0] = 127
        return (integers * (0.1 / 73 * self.rng.uniform(0.5, 1.5, (rows, 1)))).astype(np.float32)

    def differences(self, ids: list[int], batch: int, tokens: int) -> tuple[float, float]:
        """Largest relative differences of LoraUp's and LoraGatedUp's outputs."""
        x = self.random(batch, tokens, self.inputs)
        base, up = self.random(batch, tokens, self.outputs), self.random(batch, tokens, self.outputs)
        feeds = {"id": np.array(ids, np.int64), "x": x, "base": base, "up": up}
        y, z = (found.astype(np.float64) for found in self.session.run(["y", "z"], feeds))
        plain, gate, other = (m.astype(np.float64) for m in (base, base, up))
        for row in range(batch):
            if number := ids[row % len(ids)]:
                h = x[row].astype(np.float64) @ self.a[number - 1].astype(np.float64).T
                for sums, b, ends in ((plain, self.b, self.ends[0]), (other, self.b2, self.ends[1])):
                    for part, begin, end in zip(np.split(h, len(ends), axis=1), [0, *ends], ends, strict=False):
                        sums[row, :, begin:end] += part @ b[number - 1][begin:end].astype(np.float64).T
        gate = plain / (1 + np.exp(-plain)) * other
        return tuple(float((np.abs(found - wanted) / (1 + np.abs(wanted))).max())
                     for found, wanted in ((y, plain), (z, gate)))


@pytest.mark.parametrize(("device", "dtype", "matrices", "by"), KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 40), (3072, 264)])
def test_ops_give_the_sums_of_float64(device, dtype, matrices, by, inputs, outputs, monkeypatch):
    if by == "loops":
        monkeypatch.setattr(build, "_cpu_flags", frozenset)
    ops = Ops(device, dtype, inputs, outputs, matrices, library=by != "functions")
    bound = 3e-3 if dtype == np.float16 else 1e-5
    for batch, tokens in ((1, 1), (1, 2), (1, 17), (3, 1), (3, 5), (1, 200)):
        for ids in ([0], [1], [2], [3], [3, 0, 1]):
            if len(ids) in (1, batch):
                assert max(ops.differences(ids, batch, tokens)) < bound, (batch, tokens, ids)


@pytest.mark.parametrize(("device", "dtype", "matrices", "by"), KINDS)
def test_a_row_is_the_same_whatever_rows_are_beside_it(device, dtype, matrices, by, monkeypatch):
    if by == "functions":
        pytest.skip("onnxruntime's own products")
    if by == "loops":
        monkeypatch.setattr(build, "_cpu_flags", frozenset)
    ops = Ops(device, dtype, 96, 40, matrices)
    for ids in ([2, 1, 0, 2, 3, 2, 2, 1, 2], [1] * 7, [0, 3], [0, 0]):
        feeds = {name: ops.random(len(ids), 1, width) for name, width in (("x", 96), ("base", 40), ("up", 40))}
        together = ops.session.run(["y", "z"], feeds | {"id": np.array(ids)})
        for at, number in enumerate(ids):
            alone = ops.session.run(["y", "z"], {name: value[at : at + 1] for name, value in feeds.items()}
                                    | {"id": np.array([number])})
            for both, one in zip(together, alone, strict=True):
                assert (both[at] == one[0]).all(), (ids, at)


@pytest.mark.parametrize(("matrices", "by"), [
    *(pytest.param(kind, by, marks=needs_compiler) for kind in ("fp16", "int8") for by in ("vectors", "loops")),
    ("fp16", "functions"), ("int8", "functions")])
def test_outputs_with_columns_of_their_own(matrices, by, monkeypatch):
    if by == "loops":
        monkeypatch.setattr(build, "_cpu_flags", frozenset)
    for ends in (([16, 24, 40], [0, 40, 40]), ([40, 40], [0, 40])):
        ops = Ops("cpu", np.float32, 96, 40, matrices, by != "functions", ends)
        for batch, tokens, ids in ((1, 1, [2]), (1, 17, [3]), (3, 5, [3, 0, 1])):
            assert max(ops.differences(ids, batch, tokens)) < 1e-5, (ends, ids)


@needs_compiler
def test_every_half_comes_out_as_it_went_in():
    """base + h B with nothing in A: what comes out is what went in, widened and narrowed."""
    ops = Ops("cpu", np.float16, 32, 8)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(1, -1, 8)
    x = np.zeros((1, every.shape[1], 32), np.float16)
    feeds = {"id": np.array([1]), "x": x, "base": every, "up": every}
    assert (ops.session.run(["y"], feeds)[0] == every).all()


@pytest.mark.parametrize(("device", "dtype"), ON_BOTH)
def test_adapters_that_are_not_there_are_refused(device, dtype):
    ops = Ops(device, dtype, 32, 8)
    for ids, message in (([4], "no adapter"), ([-1], "no adapter"), ([1, 1], "one for each row")):
        with pytest.raises(Exception, match=message):
            ops.differences(ids, 3, 2)


@pytest.mark.parametrize(("device", "dtype"), ON_BOTH)
def test_no_tokens_give_no_tokens(device, dtype):
    ops = Ops(device, dtype, 32, 8)
    x, base = np.zeros((2, 0, 32), dtype), np.zeros((2, 0, 8), dtype)
    for ids in ([1], [0, 2]):
        found = ops.session.run(["y", "z"], {"id": np.array(ids), "x": x, "base": base, "up": base})
        assert [y.shape for y in found] == [(2, 0, 8)] * 2


@pytest.mark.parametrize(("device", "dtype"), ON_BOTH)
def test_bases_of_different_sizes_are_refused(device, dtype):
    ops = Ops(device, dtype, 32, 8)
    feeds = {"id": np.array([1]), "x": np.zeros((1, 2, 32), dtype), "base": np.zeros((1, 2, 8), dtype)}
    with pytest.raises(Exception, match="bases of different sizes"):
        ops.session.run(["z"], feeds | {"up": np.zeros((1, 1, 8), dtype)})
    with pytest.raises(Exception, match="h is not what LoraDown makes"):
        ops.session.run(["z"], feeds | {"x": np.zeros((1, 1, 32), dtype), "up": feeds["base"]})


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("fused")
    adapter = random_adapter(tiny, root / "peft", r=4, lora_alpha=8, target_modules=["o_proj"])
    folder, _ = optimize(root=root, base=str(nearest_awq(tiny, root / "awq")), adapters=[f"late={adapter}"],
                         device="cpu", activations="int8", head="int8", adapter_layout="fused")
    return folder


@needs_compiler
def test_the_library_is_built_once_and_a_failing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = build.ops_library("cpu")
    assert built.is_relative_to(tmp_path) and build.ops_library("cpu") == built
    assert [*built.parent.iterdir()] == [built]
    before = built.stat().st_mtime_ns
    assert build.ops_library("cpu").stat().st_mtime_ns == before
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no cache folder can be there
    assert build.ops_library("cpu").is_file()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("CC", shutil.which("false"))
    with pytest.raises(Missing, match="the C compiler failed"):
        build.ops_library("cpu")


def test_a_model_of_an_earlier_version_needs_a_compiler_and_the_message_names_what_needs_none(
        made, monkeypatch, tmp_path):
    folder = shutil.copytree(made, tmp_path / "earlier", ignore=shutil.ignore_patterns("phicli.json"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.functions[:]
    onnx.save(model, folder / "model.onnx")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert len(Session(folder, adapters=False).logits([1, 2])) == 2  # without adapters nothing is needed
    with pytest.raises(Missing, match="no C compiler") as caught:
        Session(folder)
    assert "phicli optimize --force" in caught.value.hint


def test_a_library_that_a_folder_brings_is_never_loaded(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "foreign", ignore=shutil.ignore_patterns("phicli.json"))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "libops.so"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="custom_ops_library"):
        Session(folder)


@needs_compiler
def test_a_model_for_cuda_runs_on_a_cpu_too(made, tmp_path, monkeypatch):
    adapter = made.parent / "peft"
    folders = [optimize(root=tmp_path / layout, base=str(made.parent / "awq"), adapters=[f"late={adapter}"],
                        device="cuda", activations="int8", head="int8", adapter_layout=layout)[0]
               for layout in ("fused", "resident")]
    sessions = [Session(folder, "cpu") for folder in folders]
    ids = sessions[0].codec.encode_text("Rome is a city in Italy. Where should I eat there?")
    fused, resident = (session.logits(ids, "late") for session in sessions)
    monkeypatch.setattr(build, "_compiler", lambda: None)
    for found in (fused, Session(folders[0], "cpu").logits(ids, "late")):
        np.testing.assert_allclose(found, resident, atol=0.05 * np.abs(resident).max())
        assert (found.argmax(-1) == resident.argmax(-1)).mean() > 0.9
    assert np.abs(fused - sessions[0].logits(ids)).max() > 0.1  # the adapter does something


def test_what_the_kernels_cannot_take(made, tiny, tmp_path, cli):
    wide = random_adapter(tiny, tmp_path / "wide", r=1040, target_modules=["o_proj"])
    with pytest.raises(BadInput, match="a rank above 1024"):
        optimize(root=tmp_path, base=str(made.parent / "awq"), adapters=[f"wide={wide}"], device="cpu",
                 activations="int8", head="int8", adapter_layout="fused")
    for wrong in (("--device", "webgpu"), ("--device", "cuda", "--adapter-weights", "int8")):
        done = cli("optimize", "--root", tmp_path, "--adapter-layout", "fused", *wrong)
        assert done.code == 2 and "--adapter-layout" in done.err
