"""Merged models compute what the base and the adapter compute together."""

import json
import shutil

import numpy as np
import pytest
import torch
from onnx_checkpoints import Reference, compare, nearest_awq, peft_updates, random_adapter, random_model
from safetensors.torch import load_file, save_file

from phicli import BadInput, UsageError, merge, optimize
from phicli.artifacts import stages
from phicli.config.exporting import MergeConfig
from phicli.steps.merge import with_rows

IDS = list(range(7, 71))
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def logits(folder, adapter=None, untie=False) -> np.ndarray:
    """By transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if untie:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.fixture(scope="module")
def qwen(tiny, tmp_path_factory):
    """Grouped-query attention, biases, head and embedding one matrix."""
    return random_model(tmp_path_factory.mktemp("qwen") / "model", tiny, "qwen2")


@pytest.mark.parametrize(("name", "settings"), [
    ("plain", {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, "rank_pattern": {"down_proj": 9},
               "use_rslora": True}),
    ("dora", {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, "use_dora": True}),
    ("head", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"]}),
    ("pissa", {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
])
def test_into_a_model_in_floating_point(qwen, tmp_path, name, settings):
    adapter = random_adapter(qwen, tmp_path / name, **settings)
    done = merge(qwen, adapter=adapter, root=tmp_path / "root")
    assert done.folder == tmp_path / "root" / "merged" / name and done.manifest.settings == {"precision": "float"}
    wanted, untied = logits(qwen, adapter, name == "head"), name == "head"
    assert np.abs(wanted - logits(qwen)).max() > 0.1
    np.testing.assert_allclose(logits(done.folder), wanted, atol=2e-4)
    assert json.loads((done.folder / "config.json").read_text())["tie_word_embeddings"] is not untied
    assert merge(qwen, adapter=adapter, root=tmp_path / "root").manifest.created == done.manifest.created


@pytest.fixture(scope="module")
def int4(tiny, tmp_path_factory):
    """A root with `awq` and an adapter `travel` that says it was trained on it; the unquantized model beside."""
    root = tmp_path_factory.mktemp("int4")
    model = random_model(root / "model", tiny, "llama")
    nearest_awq(model, root / "awq")
    stages.write_manifest(root / "awq", stages.Manifest("quantize", {}, {}))
    adapter = random_adapter(model, root / "ft" / "travel", r=4, lora_alpha=4, target_modules=PROJECTIONS, size=0.04)
    inputs = {"base": stages.fingerprint(root / "awq")}
    stages.write_manifest(adapter, stages.Manifest("finetune", inputs, {}))
    return root


def test_into_the_int4_base_that_it_was_trained_on(int4, tmp_path):
    model, adapter = int4 / "model", int4 / "ft" / "travel"
    done = merge(model, root=int4, output=tmp_path / "float")
    assert done.manifest.inputs["base"] == stages.fingerprint(int4 / "awq")
    wanted = Reference.of_awq(model, int4 / "awq").logits(IDS, peft_updates(adapter))
    kl, _ = compare(wanted, logits(done.folder))
    assert kl < 1e-5  # float16
    settings = json.loads((done.folder / "config.json").read_text())
    assert "quantization_config" not in settings and settings["dtype"] == "float16"


def test_int4_again(int4, tmp_path):
    """An update as large as the base's own rounding is mostly kept."""
    model, adapter = int4 / "model", int4 / "ft" / "travel"
    done = merge(model, root=int4, precision="int4", samples=16, seq_len=64, device="cpu", output=tmp_path / "int4")
    assert len(done.manifest.quality["layer_errors"]) == 2
    wanted = Reference.of_awq(model, int4 / "awq").logits(IDS, peft_updates(adapter))
    kl, _ = compare(wanted, Reference.of_awq(model, done.folder).logits(IDS))
    without, _ = compare(wanted, Reference.of_awq(model, int4 / "awq").logits(IDS))
    assert kl < 0.4 * without


def test_the_original_and_the_rows_are_found_again(finished_lab, tmp_path):
    """What an adapter was trained on says where both are; where it does not, it takes the int4 base and no rows."""
    lab = finished_lab / "lab"
    original, awq, rows = (stages.fingerprint(path) for path in (finished_lab / "model", lab / "awq",
                                                                 finished_lab / "rows.jsonl"))
    done = merge("nobody/none", root=lab, precision="int4", samples=3, seq_len=64, device="cpu", output=tmp_path / "4")
    inputs = done.manifest.inputs
    assert (inputs["base"], inputs["trained_on"], inputs["own_rows"]) == (original, awq, rows)
    assert done.manifest.quality["calibration_sequences"] == {"text": 3, "own_rows": 3, "generated": 0}
    shutil.copytree(lab, tmp_path / "lab")  # beside which there is no model
    alone = merge("nobody/none", root=tmp_path / "lab")
    assert alone.manifest.inputs == {"base": awq, "adapter": inputs["adapter"]}
    shutil.copytree(lab / "ft" / "travel", tmp_path / "other", ignore=shutil.ignore_patterns(stages.MANIFEST))
    assert with_rows(MergeConfig(adapter=str(tmp_path / "other"), precision="int4")).own_rows == ()
    named = merge(finished_lab / "model", root=tmp_path / "lab")  # which is made again: from another base
    assert named.manifest.inputs["base"] == original


def test_one_model_without_slots(int4, tmp_path):
    from phicli import Session

    given = {"root": int4, "merge": "travel", "device": "cpu", "activations": "fp32", "head": "float"}
    merge(int4 / "model", root=int4, precision="int4", samples=4, seq_len=64, device="cpu")  # taken as it is
    with pytest.raises(UsageError, match="without --adapter"):
        optimize(int4 / "model", **given, adapters=["travel"])
    folder = optimize(int4 / "model", **given, output=tmp_path / "onnx").folder
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert not [node.name for node in graph.graph.node if "lora" in node.name.lower()]
    with Session(folder) as session:
        found = session.logits(IDS)
    merged = int4 / "merged" / "travel-int4"
    kl, _ = compare(Reference.of_awq(int4 / "model", merged).logits(IDS), found)
    assert kl < 1e-5


def test_what_cannot_be_merged(qwen, int4, tmp_path):
    other = random_adapter(int4 / "model", tmp_path / "other", r=2, lora_alpha=2, target_modules=["down_proj"])
    tensors = {k: torch.cat([t, t], 1) if "lora_A" in k else t for k, t in
               load_file(other / "adapter_model.safetensors").items()}
    save_file(tensors, other / "adapter_model.safetensors", {"format": "pt"})
    for adapter, error, message in ((other, BadInput, "adapter for another model"), (None, UsageError, "which adapter"),
                                    (tmp_path / "none", BadInput, "no such adapter folder")):
        with pytest.raises(error, match=message):
            merge(qwen, adapter=adapter, root=tmp_path / "root")
    config = json.loads((other / "adapter_config.json").read_text())
    for change, message in (({"peft_type": "PREFIX_TUNING"}, "change no weights"),
                            ({"megatron_config": {"a": 1}, "megatron_core": "antigravity", "use_dora": True},
                             "import a module")):
        (other / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadInput, match=message):
            merge(qwen, adapter=other, root=tmp_path / "root")
    assert not (tmp_path / "root" / "merged" / "other").exists()
