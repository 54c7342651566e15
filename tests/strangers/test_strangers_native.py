"""Strangers' faults in graphs with our ops, and at the place of the library that is built of them."""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx_checkpoints import nearest_awq, random_adapter

from phicli import optimize
from phicli.artifacts import hashing
from phicli.artifacts.hashing import Memory, file_hashes
from phicli.kernels import build, keeping
from phicli.kernels.build import find_library, ops_library

NOBODY = 54321  # a user that no list has
pytestmark = pytest.mark.skipif(bool(build.missing("cpu")), reason=f"{build.missing('cpu')}")
needs_root = pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can act as other users")
needs_matmul = pytest.mark.skipif(bool(build.matmul_missing()), reason=f"{build.matmul_missing()}")


@pytest.fixture(scope="module", autouse=True)
def quick_compiler(tmp_path_factory) -> Iterator[None]:
    """What is built here is built for where it lies, not for speed: an eighth of the time."""
    compiler = tmp_path_factory.mktemp("compiler") / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    compiler.parent.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(compiler))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder; nothing that this process built before counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "_made", {})
    monkeypatch.setattr(build, "_troubles", [])
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Callable[[Path], Path]:
    """planted(folder): a library in the folder, under the name that ours would have; where it writes when it runs."""
    made = tmp_path_factory.mktemp("planted")
    source, library, witness = made / "evil.c", made / "evil.so", made / "it-ran"
    source.write_text('#include <fcntl.h>\n__attribute__((constructor)) static void run(void) '
                      f'{{ open("{witness}", O_CREAT | O_WRONLY, 0600); }}\n')
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)

    def plant(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        content = library.read_bytes()
        for name in ("libops.so", f"libops-{hashlib.sha256(content).hexdigest()}.so"):
            (folder / name).write_bytes(content)
        return witness

    return plant


def run_op(op: str, inputs: dict[str, np.ndarray], attributes: dict, domain: str = "phicli") -> None:
    """One node of ours, which is to fail with an error of onnxruntime's."""
    def value(name: str, array: np.ndarray | None = None):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype if array is not None else np.dtype(np.float32))
        return helper.make_tensor_value_info(name, kind, None)

    constant = {name: array for name, array in inputs.items() if name.isupper()}
    fed = {name: array for name, array in inputs.items() if name not in constant}
    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), ["y"], domain=domain, **attributes)], "one",
        [value(name, array) for name, array in fed.items()], [value("y")],
        [numpy_helper.from_array(array, name) for name, array in constant.items()])
    model = helper.make_model(graph, ir_version=9, opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(ops_library("cpu", matmul=domain != "phicli")))
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, fed)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def fp16(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float16)


@pytest.mark.parametrize(("ranks", "message"), [
    ([1 << 40], "multiples of 16"), ([-16], "multiples of 16"), ([8], "multiples of 16"), ([0], "multiples of 16"),
    ([16] * 1025, "too many"), ([16, 64], "another size"), ([1024], "another size")])
def test_ranks_that_lie(ranks, message):
    """A model whose adapters' ranks are negative, huge or not those of its matrices: refused, memory is untouched."""
    with pytest.raises(Exception, match=message):
        run_op("LoraDown", {"id": np.array([1]), "x": floats(1, 2, 32), "A": fp16(16 * 32)}, {"ranks": ranks})


@pytest.mark.parametrize(("inputs", "message"), [
    ({"id": np.array([2])}, "no adapter"), ({"id": np.array([-1])}, "no adapter"),
    ({"id": np.array([[1]])}, "one adapter"), ({"id": np.array([1, 1])}, "one adapter"),
    ({"h": floats(1, 2, 8)}, "not what LoraDown"), ({"h": floats(1, 1, 16)}, "not what LoraDown"),
    ({"base": floats(1, 2, 1), "B": fp16(16)}, "a size"), ({"base": floats(1, 2, 0), "B": fp16(0)}, "a size"),
    ({"base": floats(2, 16)}, "wanted"), ({"base": floats(1, 2, 16)}, "another size"),
    ({"B": fp16(127)}, "another size"),
])
def test_sizes_and_numbers_that_lie(inputs, message):
    """A model whose adapter numbers, widths or matrices do not fit together: refused, memory is untouched."""
    right = {"id": np.array([1]), "h": floats(1, 2, 16), "base": floats(1, 2, 8), "B": fp16(8 * 16)}
    run_op("LoraUp", right, {"ranks": [16]})
    with pytest.raises(Exception, match=message):
        run_op("LoraUp", right | inputs, {"ranks": [16]})


@needs_matmul
@pytest.mark.parametrize(("attributes", "inputs", "message"), [
    ({"N": 8000}, {}, "another size"), ({"N": -8}, {}, "N or K"), ({"K": 0}, {}, "N or K"), ({"K": -64}, {}, "N or K"),
    ({"N": 1 << 62}, {}, "N or K"), ({"bits": 3, "block_size": 1032, "K": 1032}, {}, "no product"),
    ({"bits": (1 << 63) - 1}, {}, "no product"), ({"K": 128}, {"x": floats(1, 128)}, "another size"),
    ({}, {"S": floats(8)}, "another size"), ({}, {"Z": np.ones(7, np.uint8)}, "another size"),
    ({}, {"": floats(0), "BIAS": floats(7)}, "another size"), ({}, {"G": np.arange(64, dtype=np.int32)}, "g_idx"),
])
def test_products_that_lie(attributes, inputs, message):
    """A model whose 4-bit weights are not of the size that it says: refused, memory is untouched."""
    right = {"x": floats(1, 64), "W": np.ones((8, 2, 16), np.uint8), "S": floats(16), "Z": np.ones(8, np.uint8)}
    numbers = {"N": 8, "K": 64, "bits": 4, "block_size": 32}
    run_op("MatMulNBits", right, numbers, "com.microsoft")
    with pytest.raises(Exception, match=message):
        run_op("MatMulNBits", right | inputs, numbers | attributes, "com.microsoft")


def folder_of(library: Path, cache: Path) -> Path:
    """The library's folder; the cache is empty then."""
    assert library.is_relative_to(cache)
    shutil.rmtree(cache)
    return library.parent


def check_elsewhere(cache: Path, witness: Path) -> None:
    """A good library is found, not in the cache, and nothing that was planted runs."""
    library, trouble = find_library("cpu")
    ctypes.CDLL(str(library))
    assert not library.is_relative_to(cache) and trouble and not witness.exists()
    assert library.parent.stat().st_mode & 0o777 == 0o700


@needs_root
@pytest.mark.parametrize("how", ["the folder is another user's", "others can write above it", "the folder is a link"])
def test_planted_library(cache, planted, how):
    """Another user's library in the cache folder, under the name of ours: it never runs, ours is built elsewhere."""
    folder = folder_of(ops_library("cpu"), cache)
    foreign = folder if how != "the folder is a link" else cache.parent / "foreign"
    witness = planted(foreign)
    for path in (foreign, *foreign.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    if how == "others can write above it":
        cache.chmod(0o777)
    if how == "the folder is a link":
        folder.parent.mkdir(parents=True)
        folder.symlink_to(foreign)
    check_elsewhere(cache, witness)


@needs_root
def test_library_in_a_folder_that_was_open(cache, planted):
    """Another user's library, left in the cache folder while that was 0777 (umask 000): removed, ours is built."""
    folder = folder_of(ops_library("cpu"), cache)
    witness = planted(folder)
    for path in folder.iterdir():
        os.chown(path, NOBODY, NOBODY)
    cache.chmod(0o700)
    (cache / "phicli").chmod(0o777)
    folder.chmod(0o777)
    library, trouble = find_library("cpu")
    assert library.parent == folder and trouble is None and not witness.exists()
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700


def truncated(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def with_another_bit(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def empty(library: Path) -> None:
    os.truncate(library, 0)


@pytest.mark.parametrize("damage", [truncated, with_another_bit, empty])
def test_damaged_library(cache, damage):
    """A built library that is truncated, empty or has another bit: built again, doctor says the truth."""
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    library = ops_library("cpu")
    assert library.stem == f"libops-{digest(library)}"
    copy = shutil.copy(library, cache / "other.so")  # what this process has loaded stays whole
    library.unlink()
    shutil.copy(copy, library)
    damage(library)
    again, trouble = find_library("cpu")
    assert again.stem == f"libops-{digest(again)}" and again.parent == library.parent and trouble is None
    assert [*again.parent.iterdir()] == [again]


def test_relative_cache(tmp_path, monkeypatch, planted):
    """XDG_CACHE_HOME is a relative path and the working folder holds a library of somebody's: the path is ignored."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.chdir(tmp_path)
    library = ops_library("cpu")
    assert library.is_relative_to(tmp_path / "home" / ".cache" / "phicli")
    witness = planted(tmp_path / "cache" / "phicli" / library.parent.name)
    assert ops_library("cpu") == library and not witness.exists()


def as_nobody(work: Callable[[], object]) -> None:
    """Do it in a process of a user without name or home."""
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@needs_root
@pytest.mark.parametrize("home", [None, "", "relative", "/nonexistent", "/root"])
def test_no_home(home, monkeypatch):
    """No HOME, an empty or relative one, or one that is not there: the library is built in a temporary folder."""
    def work() -> None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(keeping, "_made", {})
        monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
        library, trouble = find_library("cpu")
        ctypes.CDLL(str(library))
        assert trouble and str(library).startswith("/tmp/") and library.stat().st_uid == NOBODY
        shutil.rmtree(library.parent)

    if any(folder.stat().st_mode & 5 != 5 for folder in build.HERE.parents):
        pytest.skip("phicli's folder cannot be read by other users")
    as_nobody(work)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
        pytest.skip("this process cannot mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@needs_root
@pytest.mark.parametrize("options", ["noexec,mode=700", "ro,mode=700"])
def test_cache_that_lets_nothing_run(cache, options):
    """The cache folder lies on a file system mounted noexec or read-only: a temporary folder serves."""
    with mounted(cache, options):
        library, trouble = find_library("cpu")
        assert ctypes.CDLL(str(library)) and not library.is_relative_to(cache)
        assert (trouble is None) == options.startswith("noexec")  # there it is kept, and copied


def test_planted_memory_of_hashes(tmp_path, monkeypatch):
    """A planted memory of files' hashes in a cache that others can write to: not believed, damage is seen."""
    monkeypatch.setattr(hashing, "SETTLED", -(10**12))
    monkeypatch.setattr(hashing, "MEMORY", Memory(tmp_path / "cache" / "hashes"))
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(2 << 20))
    right = file_hashes([weights])
    entries = json.loads(hashing.MEMORY.path.read_bytes().split(b"\n", 1)[1])
    lie = json.dumps({identity: ["0" * 64, read] for identity, (_, read) in entries.items()}).encode()
    hashing.MEMORY.path.write_bytes(hashlib.sha256(lie).hexdigest().encode() + b"\n" + lie)
    monkeypatch.setattr(hashing, "MEMORY", Memory(hashing.MEMORY.path))
    assert file_hashes([weights]) == ["0" * 64]  # in a folder of one's own it is believed
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setattr(hashing, "MEMORY", Memory(hashing.MEMORY.path))
    assert file_hashes([weights]) == right


@needs_root
@needs_matmul
def test_chat_without_a_safe_cache(cache, planted, tiny, tmp_path, cli):
    """Chat where another user's library lies in the cache: it answers as ever, with a note, and doctor is yellow."""
    adapter = random_adapter(tiny, tmp_path / "peft", r=4, lora_alpha=8, target_modules=["o_proj"])
    optimize(root=tmp_path / "root", base=str(nearest_awq(tiny, tmp_path / "awq")), adapters=[f"late={adapter}"],
             device="cpu", activations="int8", head="int8", output=None, adapter_layout="fused")
    command = ("chat", "--root", tmp_path / "root", "--adapter", "late", "--prompt", "Rome?", "--max-new-tokens", 5,
               "--device", "cpu", "--kernels", "phicli")
    right = cli(*command)
    assert right.code == 0 and "slower" not in right.err
    folders = [*(cache / "phicli").glob("ops-*")]
    witnesses = [planted(folder) for folder in folders]
    cache.chmod(0o777)
    done = cli(*command)
    assert (done.code, done.out) == (0, right.out) and "others can write to" in done.err
    assert folders and not any(witness.exists() for witness in witnesses)
    from phicli.config.layers import Settings
    from phicli.doctor.check_result import Light, Subject
    from phicli.doctor.gpu import own_kernels
    from phicli.doctor.probes import Probes

    found = own_kernels(Subject("tiny", tmp_path, "cpu", Settings(), False, Probes()))
    assert found.light is Light.YELLOW and "others can write to" in found.found and "chmod" in (found.cure or "")
