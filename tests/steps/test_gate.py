"""A build with each of many faults in it does not pass the gate; the same build, made again, does."""

import json
import shutil

import pytest
from onnx_checkpoints import random_adapter
from safetensors.torch import load_file, save_file

from phicli import finetune, optimize, quantize
from phicli.artifacts.stages import read_manifest, write_manifest
from phicli.config.measuring import GateConfig
from phicli.errors import BadInput
from phicli.hub.models import BUILT_IN
from phicli.steps.accepted import compared, is_busy, slower
from phicli.steps.gate import gate

ROWS = 9
PROJECTIONS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def built(root, data_file, group_size=32):
    quantize("tiny", root=root, device="cpu", samples=4, seq_len=128, rounding="nearest", group_size=group_size)
    finetune("tiny", root=root, device="cpu", data=data_file, max_steps=10, lora_r=4, eval_split=0)
    optimize("tiny", root=root, device="cpu")


def judged(root, **more):
    return gate(GateConfig(**{"model": "tiny", "root": root, "eval_data": root / "rows.jsonl", "speed": False,
                              "seq_len": 56, "device": "cpu"} | more))


@pytest.fixture(scope="module")
def accepted(tmp_path_factory, data_file):
    """A root whose build is accepted. To be left as it is."""
    root = tmp_path_factory.mktemp("gate") / "lab"
    built(root, data_file)
    held_out = data_file.with_name("data_eval_travel.jsonl").read_text().splitlines(keepends=True)[:ROWS]
    (root / "rows.jsonl").write_text("".join(held_out))
    assert not judged(root, accept=True).failed
    return root


@pytest.fixture
def copy(accepted, tmp_path):
    return shutil.copytree(accepted, tmp_path / "lab")


def sealed(folder):
    """As if the step itself had written what is in the folder now."""
    write_manifest(folder, read_manifest(folder))


def change_tensors(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
    sealed(folder)


def change_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    sealed(path.parent)


def swapped_adapter(root):
    other = random_adapter(BUILT_IN / "tiny", root.parent / "other", r=4, lora_alpha=4, target_modules=PROJECTIONS)
    optimize("tiny", root=root, device="cpu", adapters=[f"travel={other}"])


def other_group_size(root):
    quantize("tiny", root=root, device="cpu", samples=4, seq_len=128, rounding="nearest", group_size=128)


def flipped_scale(root):
    """Of one group of inputs of one linear, so that the same integers mean something else there."""
    change_tensors(root / "awq", lambda t: t["model.layers.1.mlp.down_proj.scales"][3].neg_())


def other_tokenizer(root):
    for name in ("awq", "onnx-ao"):
        change_json(root / name / "tokenizer.json",
                    lambda d: d["model"].update(merges=d["model"]["merges"][: len(d["model"]["merges"]) // 2]))


def truncated_rows(root):
    lines = (root / "rows.jsonl").read_text().splitlines(keepends=True)
    (root / "rows.jsonl").write_text("".join(lines[: ROWS - 3]))


def wrong_end(root):
    change_json(root / "onnx-ao" / "genai_config.json", lambda d: d["model"].update(eos_token_id=[7]))


def layer_without_adapter(root):
    change_tensors(root / "ft" / "travel", lambda t: [t[n].zero_() for n in t if "layers.2" in n and "lora_B" in n],
                   "adapter_model.safetensors")


def layer_without_adapter_in_onnx(root):
    """The adapter's folder is whole; what was built of it is not."""
    weights = root / "ft" / "travel" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    layer_without_adapter(root)
    optimize("tiny", root=root, device="cpu", force=True)
    weights.write_bytes(whole)
    sealed(root / "ft" / "travel")


def shuffled_vocabulary(root):
    change_tensors(root / "awq", lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].roll(
        1, 0)}))


def other_rope(root):
    change_json(root / "awq" / "config.json", lambda d: (
        d.update(rope_theta=500000.0), d["rope_parameters"].update(rope_theta=500000.0)))


def larger_alpha(root):
    change_json(root / "ft" / "travel" / "adapter_config.json", lambda d: d.update(lora_alpha=4 * d["lora_alpha"]))


FAULTS = {
    swapped_adapter: "onnx + travel", other_group_size: "awq", flipped_scale: "awq", other_tokenizer: BadInput,
    truncated_rows: "held-out tokens", wrong_end: "ends of answers", layer_without_adapter: "linears that it changes",
    layer_without_adapter_in_onnx: "onnx + travel", shuffled_vocabulary: "awq", other_rope: "awq",
    larger_alpha: "onnx + travel",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_caught(copy, fault):
    fault(copy)
    if FAULTS[fault] is BadInput:
        with pytest.raises(BadInput, match="other tokens"):
            judged(copy)
        return
    failed = judged(copy).failed
    assert FAULTS[fault] in {text for check in failed for text in (check.name, check.of)}


@pytest.mark.parametrize("kernels", ["phicli", "onnxruntime"])
def test_the_same_build_made_again_passes(copy, kernels):
    optimize("tiny", root=copy, device="cpu", force=True)
    result = judged(copy, kernels=kernels)
    assert len(result.checks) > 15 and not result.failed


def test_what_a_person_and_a_program_see(cli, copy):
    common = ("gate", "--model", "tiny", "--root", copy, "--eval-data", copy / "rows.jsonl", "--seq-len", "56",
              "--device", "cpu")
    refused = cli(*common, "--max-size", "5 MB", "--min-top1", "0.999", "--no-speed", "--json")
    found = json.loads(refused.out)
    assert refused.code == 6 and not found["passed"] and "--accept" not in refused.err
    assert "other limits: --min-top1, --max-size" in refused.err
    assert {(one["name"], one["of"]) for one in found["checks"] if not one["passed"]} == {
        ("size", "onnx"), ("size", "onnx + travel"), ("top-1 as original", "onnx")}
    before = (copy / "accepted.json").read_bytes()
    assert cli(*common, "--accept", "--max-kl", "0", "--no-speed").code == 6
    assert (copy / "accepted.json").read_bytes() == before
    kept = cli(*common, "--accept")
    assert (kept.code, kept.out) == (0, f"{copy / 'accepted.json'}\n")
    assert min(map(len, json.loads((copy / "accepted.json").read_text())["speed"].values())) == 5
    measured = (copy / "evaluation.json").read_bytes()
    others = cli(*common, "--rows", "3", "--no-speed")
    assert others.code == 6 and "--rows" in others.err and "--accept" not in others.err
    assert (copy / "evaluation.json").read_bytes() == measured
    passed = cli(*common, "--min-speed", "1")
    assert passed.code == 0 and "tokens/s" in passed.out and "NO" not in passed.out, passed.out
    shutil.rmtree(copy / "ft")
    refused = cli(*common, "--no-speed")  # what is typed next accepts it on the same rows, and no others
    assert refused.code == 6 and f"--eval-data {copy / 'rows.jsonl'}" in refused.err and "--seq-len 56" in refused.err


def test_nothing_to_compare_with_and_what_is_not_ours(cli, copy):
    common = ("gate", "--model", "tiny", "--root", copy, "--eval-data", copy / "rows.jsonl", "--seq-len", "56")
    (copy / "accepted.json").unlink()
    nothing = cli(*common)
    assert nothing.code == 4 and "phicli gate" in nothing.err and "--accept" in nothing.err
    theirs = copy.parent / "theirs.json"
    theirs.write_text('{"name": "x"}')
    assert cli(*common, "--accept", "--accepted", theirs).code == 3 and theirs.read_text() == '{"name": "x"}'
    assert cli(*common, "--max-size", "large").code == 2


def test_size_stages_and_speed(accepted):
    old = json.loads((accepted / "accepted.json").read_text())
    grown = json.loads(json.dumps(old))
    grown["stages"]["onnx"]["bytes"] *= 1.03
    del grown["stages"]["onnx + travel"]
    assert [(one.name, one.of) for one in compared(grown, old, 1) if not one.passed] == [
        ("size", "onnx"), ("stage", "onnx + travel")]
    assert [one.of for one in compared(grown, old, 2) if not one.passed] == ["onnx + travel"]


def test_a_busy_machine_is_not_a_slow_build():
    """The yardstick is the same work whatever the build: what it loses, the machine has lost."""
    before = {"phicli": 100.0, "yardstick": 50.0}
    slower_machine, slower_build = {"phicli": 70.0, "yardstick": 45.0}, {"phicli": 70.0, "yardstick": 50.0}
    assert [(one.of, one.passed) for now in (slower_machine, slower_build) for one in slower(now, before, 1)] == [
        ("phicli", True), ("phicli", False)]
    assert all(one.passed for one in slower(slower_build, before, 2))
    assert [is_busy({"yardstick": turns}, slower_build) for turns in ([20.0, 45.0], [20.0, 29.0])] == [False, True]
