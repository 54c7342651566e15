"""An adapter taken over computes what it did, whatever made it."""

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from phicli.checkpoints.loading import load_base
from phicli.checkpoints.peft_folder import read_peft
from phicli.errors import BadInput
from phicli.training.checkpoint import trainable
from phicli.training.continuing import continue_from

TOKENS = torch.arange(10, 90).view(2, 40)
LAST = "model.layers.3.mlp.down_proj"
CONFIGS = {
    "plain": LoraConfig(r=4, lora_alpha=12, target_modules=["down_proj", "o_proj"]),
    "rslora": LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=["qkv_proj"]),
    "patterns": LoraConfig(r=4, lora_alpha=8, target_modules=["down_proj"], rank_pattern={re.escape(LAST): 7},
                           alpha_pattern={re.escape(LAST): 3}),
    "few layers": LoraConfig(r=2, target_modules=["down_proj"], layers_to_transform=[1, 3]),
}


def stored(tiny, folder, config, dtype=torch.float32):
    """An adapter of random matrices that plain peft saved."""
    adapted = get_peft_model(load_base(tiny, "cpu", torch.float32), config)
    torch.manual_seed(0)
    for parameter in trainable(adapted).values():
        torch.nn.init.normal_(parameter, std=0.05)
        parameter.data = parameter.data.to(dtype)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_peft_makes_of_it_and_saves_the_same(tiny, tmp_path, name, dtype):
    folder = stored(tiny, tmp_path / "a", CONFIGS[name], dtype)
    plain = PeftModel.from_pretrained(load_base(tiny, "cpu", torch.float32), folder).eval()
    ours = continue_from(load_base(tiny, "cpu", torch.float32), read_peft(folder), 0.1).eval()
    with torch.no_grad():
        assert torch.allclose(ours(TOKENS).logits, plain(TOKENS).logits, atol=1e-4)
    assert {p.dtype for p in trainable(ours).values()} == {torch.float32}
    assert {m.p for n, m in ours.named_modules() if n.endswith("lora_dropout.default")} == {0.1}
    ours.save_pretrained(tmp_path / "b")
    before, after = read_peft(folder), read_peft(tmp_path / "b")
    assert before.keys() == after.keys()
    for module, lora in before.items():
        assert after[module].scaling == pytest.approx(lora.scaling) and (after[module].b == lora.b).all()


def test_a_base_without_its_linears(tiny, tmp_path):
    loras = read_peft(stored(tiny, tmp_path / "a", CONFIGS["plain"]))
    renamed = {name.replace("layers.3", "layers.9"): lora for name, lora in loras.items()}
    with pytest.raises(BadInput, match=r"layers\.9.*the base has no such linear"):
        continue_from(load_base(tiny, "cpu", torch.float32), renamed, 0.0)
