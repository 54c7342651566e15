"""phicli optimize through the real main(): happy path and wrong input."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
from onnx_checkpoints import nearest_awq, random_adapter, random_model
from safetensors.torch import load_file, save_file

from phicli.artifacts import stages
from phicli.config import OptimizeConfig
from phicli.export.plan import plan_optimize
from phicli.inference.session import Session
from phicli.text import TextCodec

ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, tiny):
    """An AWQ checkpoint with its manifest and two adapters, not to be changed."""
    folder = tmp_path_factory.mktemp("workshop")
    stages.write_manifest(nearest_awq(tiny, folder / "awq"), stages.Manifest("quantize", {}, {}))
    for name, rank in (("travel", 4), ("other", 2)):
        random_adapter(tiny, folder / "ft" / name, r=rank, target_modules=ALL)
    return folder


@pytest.fixture
def root(workshop, tmp_path):
    """A root with the checkpoint and the adapter travel; `other` lies outside."""
    root = tmp_path / "root"
    shutil.copytree(workshop / "awq", root / "awq")
    shutil.copytree(workshop / "ft" / "travel", root / "ft" / "travel")
    shutil.copytree(workshop / "ft" / "other", tmp_path / "other")
    return root


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns)
            for p in folder.rglob("*") if p.is_file()}


def test_build_then_add_then_remove_an_adapter(cli, root):
    done = cli("optimize", "--root", root, "--device", "cpu")
    folder = root / "onnx-ao"
    assert done.code == 0 and done.out == f"{folder}\n" and "(travel)" in done.err
    # no commit of a repository that the builder happens to be installed in
    assert "+" not in onnx.load(folder / "model.onnx", load_external_data=False).producer_version
    session = Session(folder)
    assert session.adapter_names() == ["travel"] and session.context == 2048
    assert session.end_ids == {TextCodec(folder).special[t][0] for t in ("<|end|>", "<|endoftext|>", "<|assistant|>")}
    chat = [{"role": "user", "content": "Where to?"}]
    assert session.codec.encode_chat(chat) == TextCodec(root / "awq").encode_chat(chat)
    manifest = stages.read_manifest(folder)
    assert manifest.step == "optimize" and set(manifest.inputs) == {"base", "adapters/travel"}
    assert manifest.quality["adapters"]["travel"]["rank"] == 4 and manifest.seconds > 0
    before = files(folder)

    added = cli("optimize", "--root", root, "--device", "cpu", "--adapter", f"other={root.parent / 'other'}", "--json")
    document = json.loads(added.out)
    assert added.code == 0 and set(document["quality"]["adapters"]) == {"travel", "other"}
    assert "up to date; adding other" in added.err
    after = files(folder)
    changed = {k.partition("-")[0] for k in after if after[k] != before.get(k)}
    assert changed == {"adapters/other.onnx_adapter", "adapters/travel.onnx_adapter", "adapters.data", "model.onnx",
                       "phicli.json"}
    assert Session(folder).adapter_names() == ["other", "travel"]

    again = cli("optimize", "--root", root, "--device", "cpu")
    assert again.code == 0 and "is up to date" in again.err and files(folder) == after

    (folder / "adapters" / "travel.onnx_adapter").unlink()  # the way to remove one; it is in ft, so it comes back
    shutil.rmtree(root / "ft" / "travel")
    (root / "ft" / "late").mkdir()
    shutil.copytree(root.parent / "other", root / "ft" / "late", dirs_exist_ok=True)
    assert cli("optimize", "--root", root, "--device", "cpu").code == 0
    assert set(stages.read_manifest(folder).inputs) == {"base", "adapters/other", "adapters/late"}
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


def test_another_build_keeps_adapters_added_later(cli, root):
    base = ("optimize", "--root", root)
    cuda = cli(*base, "--device", "cuda", "--cuda-graph", "--adapter", f"other={root.parent / 'other'}")
    assert cuda.code == 0
    config = json.loads((root / "onnx-ao" / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]["provider_options"]
    assert options[0]["cuda"]["enable_cuda_graph"] == "1"
    done = cli(*base, "--device", "cpu", "--head", "int4", "--activations", "fp32")
    assert done.code == 0 and Session(root / "onnx-ao").adapter_names() == ["other", "travel"]
    for name in ("other", "travel"):  # the float type of the new build
        Session(root / "onnx-ao").load_adapter(name)


@pytest.mark.parametrize(("kept", "weights", "layout"), [
    (1.0, "float", "fused"), (0.9, "float", "inputs"), (0.9, "int8", "resident")])
def test_on_a_cpu_adapters_are_fused_where_the_sizes_allow_it(tiny, tmp_path, kept, weights, layout):
    base, width = shutil.copytree(tiny, tmp_path / "base"), int(kept * 768) // 2 * 2
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": width}))
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if "down_proj" in name:
            tensors[name] = tensors[name][:, :width].contiguous()
        elif "gate_up_proj" in name:
            tensors[name] = tensors[name][: 2 * width].contiguous()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    plan = plan_optimize(OptimizeConfig(root=tmp_path, base=base, device="cpu", adapter_weights=weights))
    assert plan.settings["adapter_layout"] == layout


@pytest.mark.parametrize("device", ["dml", "webgpu"])
def test_adapters_have_the_targets_float_type(cli, root, device):
    from phicli.export.adapters import check_adapter

    done = cli("optimize", "--root", root, "--device", device)
    folder = root / "onnx-ao"
    assert done.code == 0
    check_adapter(folder, folder / "adapters" / "travel.onnx_adapter")
    names = [n for o in json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
             ["provider_options"] for n in o]
    assert [n.lower() for n in names] == [device]


@pytest.mark.parametrize(("layout", "last"), [("fused", "check_adapter"), ("inputs", "convert_adapter")])
def test_a_failed_build_leaves_the_earlier_model(cli, root, monkeypatch, layout, last):
    build = ("optimize", "--root", root, "--device", "cpu", "--adapter-layout", layout)
    assert cli(*build).code == 0
    before = files(root / "onnx-ao")
    from phicli.steps import optimize as stage

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, last, full)
    failed = cli(*build, "--force")
    assert failed.code == 4 and "No space left" in failed.err and "free some space" in failed.err
    late = cli(*build, "--adapter", f"late={root.parent / 'other'}")
    assert late.code == 4 and files(root / "onnx-ao") == before
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


def break_config(root):
    (root / "ft" / "travel" / "adapter_config.json").unlink()


def truncate_adapter(root):
    path = root / "ft" / "travel" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_base(root):
    path = root / "awq" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def make_dora(root):
    path = root / "ft" / "travel" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))


def other_quantization(root):
    path = root / "awq" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    stages.write_manifest(root / "awq", stages.Manifest("quantize", {}, {}))


def of_the_output_projection(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    rank, hidden = next(tensor for name, tensor in tensors.items() if "q" in name and "lora_A" in name).shape
    for side, shape in (("A", (rank, hidden)), ("B", (4096, rank))):
        tensors[f"base_model.model.lm_head.lora_{side}.weight"] = torch.ones(shape)
    save_file(tensors, folder / "adapter_model.safetensors")


def of_other_kinds(**settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    return change


@pytest.mark.parametrize("change", [of_other_kinds(use_dora=True), of_other_kinds(peft_type="LOHA"),
                                    of_other_kinds(bias="all"), of_the_output_projection],
                         ids=["dora", "loha", "bias", "lm_head"])
def test_what_has_no_slot_is_left_out_by_name(cli, root, change):
    shutil.copytree(root / "ft" / "travel", root / "ft" / "other")
    change(root / "ft" / "other")
    (root / "ft" / "other" / stages.MANIFEST).unlink(missing_ok=True)
    done = cli("optimize", "--root", root, "--device", "cpu")
    assert done.code == 0 and "adapter other is left out" in done.err and "phicli merge --model " in done.err
    assert f" --root {root} --adapter {root / 'ft' / 'other'}\n" in done.err
    assert [file.name for file in (root / "onnx-ao" / "adapters").glob("*.onnx_adapter")] == ["travel.onnx_adapter"]
    again = cli("optimize", "--root", root, "--device", "cpu")
    assert again.code == 0 and "is up to date" in again.err


@pytest.mark.parametrize(("damage", "argv", "code", "message"), [
    (None, ("--base", "nowhere/at/all"), 3, "no such model folder"),
    (lambda root: shutil.rmtree(root / "awq"), (), 4, "no quantized model there"),
    (truncate_base, (), 3, "truncated"),
    (other_quantization, (), 3, "quantization 'bitsandbytes' cannot be built from"),
    (None, ("--adapter", "x=missing"), 3, "no such adapter folder"),
    (None, ("--adapter", "unknown"), 3, "there are: travel"),
    (None, ("--adapter", "a/b=ft"), 3, "an adapter's name has letters"),
    (None, ("--adapter", "travel", "--adapter", "travel"), 2, "there twice"),
    (break_config, ("--adapter", "travel={root}/ft/travel"), 3, "no adapter_config.json"),
    (truncate_adapter, (), 3, "truncated"),
    (make_dora, ("--adapter", "travel"), 3, "phicli merge --root {root} --adapter {root}/ft/travel"),
    (None, ("--device", "npu"), 4, "static shapes"),
    (None, ("--device", "qnn"), 4, "EPContextBinaryGenerator"),
    (None, ("--device", "cud"), 2, "did you mean 'cuda'?"),
    (None, ("--device", "cpu", "--cuda-graph"), 2, "--cuda-graph goes with --device cuda"),
    (None, ("--activations", "int3"), 2, "not one of int8, fp32"),
])
def test_wrong_input_writes_nothing(cli, root, damage, argv, code, message):
    if damage:
        damage(root)
    done = cli("optimize", "--root", root, *(arg.replace("{root}", str(root)) for arg in argv))
    assert done.code == code and message.replace("{root}", str(root)) in done.err and done.out == ""
    assert done.err.count("error:") == 1
    assert not (root / "onnx-ao").exists()
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


def test_an_adapter_for_another_model(cli, root, tiny):
    original = random_model(root.parent / "llama", tiny, "llama")
    random_adapter(original, root / "ft" / "travel", r=2, target_modules=["o_proj"])
    done = cli("optimize", "--root", root, "--device", "cpu")
    assert done.code == 3 and "an adapter for another model" in done.err and not (root / "onnx-ao").exists()


def test_an_architecture_that_the_builder_does_not_know(cli, root):
    path = root / "awq" / "config.json"
    path.write_text(path.read_text().replace("Phi3ForCausalLM", "UnknownForCausalLM"))
    stages.write_manifest(root / "awq", stages.Manifest("quantize", {}, {}))
    done = cli("optimize", "--root", root, "--device", "cpu")
    assert done.code == 3 and "genai's builder cannot build this model" in done.err and not (root / "onnx-ao").exists()


def test_a_warning_where_the_adapter_belongs_to_other_weights(cli, root):
    stages.write_manifest(root / "ft" / "travel", stages.Manifest("finetune", {"base": "something else"}, {}))
    done = cli("optimize", "--root", root, "--device", "cpu")
    assert done.code == 0 and "was trained on another base" in done.err


def test_what_follows_a_merge_names_what_was_written(cli, root):
    done = cli("optimize", "--model", "tiny", "--root", root, "--merge", "travel", "--device", "cpu")
    assert done.code == 0, done.err
    assert f"next: phicli chat --model tiny --root {root} --device cpu --path {root / 'onnx-ao-travel'}\n" in done.err
    done = cli("merge", "--model", "tiny", "--root", root, "--adapter", "travel", "--device", "cpu")
    again = f"next: phicli quantize --model {root / 'merged' / 'travel'} --device cpu\n"
    assert done.code == 0 and again in done.err, done.err
    done = cli("merge", "--model", "tiny", "--root", root, "--precision", "int4", "--device", "cpu", "--samples", "4",
               "--seq-len", "64")
    assert f"next: phicli optimize --model tiny --root {root} --device cpu --merge travel\n" in done.err, done.err
    merged = (root / "merged" / "travel-int4").stat().st_ino
    done = cli("optimize", "--model", "tiny", "--root", root, "--device", "cpu", "--merge", "travel")
    assert done.code == 0 and (root / "merged" / "travel-int4").stat().st_ino == merged, done.err  # taken as it is
