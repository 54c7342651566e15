"""What `test_fused` checks, on a GPU or where Triton interprets its kernels: prints what is wrong, by name."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    Phi3Config,
    PhiConfig,
    Qwen3Config,
)

from phicli.checkpoints.int4 import Int4Linear, dequantize
from phicli.checkpoints.int4_triton import dequantize_4_bits
from phicli.training.fused import functions, kernels
from phicli.training.fused.fusing import Fused
from phicli.training.loss import IGNORED, Batch, RowLoss
from phicli.training.recompute import LAYER, MLP, NOTHING, Recompute

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
torch.set_default_device("cpu" if INTERPRETED else "cuda")
torch.set_num_threads(1)  # the many small operations of the interpreter wait for threads longer than they take
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
FAMILIES = {
    "phi3": Phi3Config(**SMALL), "partly rotated": Phi3Config(**SMALL, partial_rotary_factor=0.5),
    "llama": LlamaConfig(**SMALL), "qwen3": Qwen3Config(**SMALL, head_dim=8), "gemma": GemmaConfig(**SMALL, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0), "phi": PhiConfig(**SMALL),
}
TOKENS = torch.arange(14)
IDS = TOKENS.view(2, 7)
BATCH = Batch(IDS, TOKENS, torch.where(TOKENS % 5 > 0, TOKENS % 6, IGNORED))


def gradients(function: Callable[..., Tensor], outer: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The result, and its gradients by the inputs, in the inputs' dtype."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    result = function(*inputs)
    result.backward(outer.to(result.dtype))
    return [result.detach(), *(t.grad for t in inputs)]


def same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, close: float = 1e-5) -> None:
    """Ours gives what theirs gives in float64."""
    outer = torch.randn(ours(*inputs).shape)
    found, wanted = (gradients(f, outer, *(t.to(dtype) for t in inputs))
                     for f, dtype in ((ours, torch.float32), (theirs, torch.float64)))
    for i, (one, two) in enumerate(zip(found, wanted, strict=True)):
        assert (one.double() - two).norm() <= close * two.norm(), (i, one, two)


def norm() -> None:
    weight = torch.randn(96)
    for offset in (0, 1):
        same(lambda x, o=offset: functions.Norm.apply(x, weight, 1e-5, o), lambda x, o=offset:
             x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * (weight.double() + o), torch.randn(2, 5, 96))


def gate() -> None:
    for gelu, curve in ((False, F.silu), (True, lambda x: F.gelu(x, approximate="tanh"))):
        one, two = torch.randn(2, 5, 1100), torch.randn(2, 5, 1100)
        same(lambda g, u, k=gelu: functions.Gated.apply(k, g, u), lambda g, u, c=curve: c(g) * u, one, two)
        same(lambda both, k=gelu: functions.Gated.apply(k, both),
             lambda both, c=curve: c(both[..., :1100]) * both[..., 1100:], torch.cat([one, two], -1))


def rotary() -> None:
    angles = torch.randn(1, 7, 8).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()

    def theirs(x: Tensor) -> Tensor:
        part = x[..., :16]
        turned = part * cos.double() + torch.cat([-part[..., 8:], part[..., :8]], -1) * sin.double()
        return torch.cat([turned, x[..., 16:]], -1)

    for width in (16, 24):
        same(lambda x: functions.Rotary.apply(x, cos, sin), theirs, torch.randn(2, 7, 3, width).transpose(1, 2))


def dropout() -> None:
    x, seed = torch.randn(20, 3000), torch.tensor([123456789012])
    for p in (0.05, 0.5):
        first, again = kernels.dropped(x, seed, 3, p), kernels.dropped(x, seed, 3, p)
        assert torch.equal(first, again)
        assert abs(float((first == 0).float().mean()) - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
        kept = first != 0
        assert torch.allclose(first[kept], x[kept] / (1 - p))
        for other in (kernels.dropped(x, seed, 4, p), kernels.dropped(x, seed + 1, 3, p), first.roll(1, 0),
                      first.roll(1, 1), first.roll(256, 1)):
            both = float(((other == 0) & (first == 0)).float().mean())
            assert abs(both - p * p) < 5 * (p * p / x.numel()) ** 0.5, (p, both)
        assert torch.allclose(kernels.dropped(x, seed, 3, p, to=x.clone()), x + first)


def product() -> None:
    torch.manual_seed(1)
    base, seed = torch.nn.Linear(40, 24), torch.tensor([7])
    for p in (0.0, 0.3):
        a, b = torch.randn(4, 40), torch.randn(24, 4)
        mask = kernels.dropped(torch.ones(10, 40), seed, 2, p) if p else torch.ones(10, 40)

        def ours(x: Tensor, a: Tensor, b: Tensor, p: float = p) -> Tensor:
            adapter = functions.Adapter(a.detach(), b.detach(), 1.7, seed, 2, p)
            return functions.Product.apply(x, a, b, adapter, base, None)

        def theirs(x: Tensor, a: Tensor, b: Tensor, mask: Tensor = mask) -> Tensor:
            low = (x * mask.view(x.shape).double()) @ a.t()
            return x @ base.weight.double().t() + base.bias.double() + 1.7 * low @ b.t()

        same(ours, theirs, torch.randn(2, 5, 40), a, b)


def loss() -> None:
    logits, labels = 3 * torch.randn(4, 20011), torch.tensor([1, IGNORED, 20010, 77])
    logits[0, 5] = float("-inf")
    wanted = logits.double().requires_grad_()
    F.cross_entropy(wanted, labels, reduction="sum", ignore_index=IGNORED).backward()
    rows = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    assert torch.allclose(kernels.cross_entropy(logits, labels, IGNORED), rows)
    assert torch.allclose(kernels.cross_entropy(logits, labels, IGNORED, logits), rows)  # in place
    assert torch.allclose(logits.double(), wanted.grad, atol=1e-6)


def unpacking() -> None:
    for rows, width, groups in ((7, 256, 4), (5, 96, 1), (3, 1536, 24), (3, 144, 3)):
        packed, zeros = torch.randint(0, 256, (rows, width)), torch.randint(0, 16, (rows, groups))
        given = packed.to(torch.uint8), torch.rand(rows, groups).half(), zeros.to(torch.uint8)
        plainly = dequantize(*(t.cpu() for t in given), 4, torch.float32)
        assert torch.equal(dequantize_4_bits(*given, torch.float32).cpu(), plainly)


def adapted(config: Any, p: float = 0.0) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    base.requires_grad_(False)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=p, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        weight.data += 0.05 * torch.randn_like(weight) + (0.1 * torch.randn_like(weight) if "lora_B" in name else 0.0)
    return model.train()


def step(model: Any, fused: bool) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = RowLoss(model.get_base_model(), fused=fused)(BATCH)
    total.backward()
    return float(total), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def families() -> None:
    for name, config in FAMILIES.items():
        model = adapted(config)
        wanted, by = step(model, fused=False)
        fused = Fused(model)
        with fused.running():
            found, ours = step(model, fused=True)
        assert abs(found - wanted) < 1e-5 * wanted, name
        assert ours.keys() == by.keys()
        for weight, gradient in by.items():
            assert (ours[weight] - gradient).norm() <= 1e-4 * gradient.norm(), (name, weight)
        known = [kind.__name__ for kind, which in fused.kinds.items() if which is None]
        assert known == (["LayerNorm"] if name == "phi" else []), (name, known)
        assert len(fused.rotary) == 1
        assert len(fused.weights) == len(by)


def recomputed() -> None:
    """With dropout the second computation has the masks of the first, and an evaluation has none."""
    found = []
    for level in (NOTHING, MLP, LAYER):
        model = adapted(FAMILIES["phi3"], p=0.3)
        fused, recompute = Fused(model), Recompute(model.get_base_model())
        recompute.set(level)
        with fused.running():
            torch.manual_seed(5)
            found.append(step(model, fused=True)[1])
    for other in found[1:]:
        assert all(torch.allclose(other[name], gradient, atol=1e-5) for name, gradient in found[0].items())
    model = adapted(FAMILIES["phi3"], p=0.3).eval()
    with torch.no_grad():
        wanted = float(RowLoss(model.get_base_model())(BATCH))
        Fused(model)
        assert abs(float(RowLoss(model.get_base_model(), fused=True)(BATCH)) - wanted) < 1e-4 * wanted


def kept() -> None:
    """Fewer bytes than before, in float32 too, where norms and dropout leave no copies in another dtype."""
    sizes = []
    for ours in (False, True):
        model = adapted(FAMILIES["phi3"], p=0.3)
        fused = Fused(model) if ours else None
        held: dict[int, int] = {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            if 7 in tensor.shape or 14 in tensor.shape:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if fused:
                with fused.running():
                    model.get_base_model().get_decoder()(input_ids=IDS, use_cache=False)
            else:
                model.get_base_model().get_decoder()(input_ids=IDS, use_cache=False)
        sizes.append(sum(held.values()))
    assert sizes[1] < 0.75 * sizes[0], sizes


def rounded() -> None:
    """In bfloat16 gradients are no further from those in float32 than peft's. (The interpreter cuts, and so is.)"""
    _, wanted = step(adapted(FAMILIES["phi3"]), fused=False)
    errors = []
    for ours in (False, True):
        model = adapted(FAMILIES["phi3"])
        for weight in model.parameters():
            weight.data = weight.data.bfloat16() if not weight.requires_grad else weight.data
        fused = Fused(model) if ours else None
        for module in model.modules():
            module.cast_input_dtype_enabled = False  # as in training
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, cache_enabled=False):
            if fused:
                with fused.running():
                    _, found = step(model, fused=True)
            else:
                _, found = step(model, fused=False)
        errors.append(sum(float((found[name].double() - by).norm() / by.norm()) for name, by in wanted.items()))
    assert errors[1] <= 1.1 * errors[0], errors


def packed_base() -> None:
    """A base of packed integers, of which no more than these is held."""
    model = adapted(FAMILIES["llama"])
    for parent in list(model.modules()):
        if hasattr(parent, "base_layer"):
            out, width = parent.base_layer.weight.shape
            linear = Int4Linear(width, out, {}, torch.float32)
            linear.settle(torch.randint(0, 256, (out, width // 2)).to(torch.uint8), torch.rand(out, 2) / 20,
                          torch.full((out, 2), 8, dtype=torch.uint8), 4)
            parent.base_layer = linear
    wanted, by = step(model, fused=False)
    fused = Fused(model)
    with fused.running():
        found, ours = step(model, fused=True)
    assert abs(found - wanted) < 1e-5 * wanted
    assert all((ours[name] - gradient).norm() <= 1e-4 * gradient.norm() for name, gradient in by.items())
    assert len(fused.weights) == len(by)


CHECKS = (norm, gate, rotary, dropout, product, loss, unpacking, families, recomputed, kept, packed_base,
          *([] if INTERPRETED else [rounded]))


def main() -> None:
    wrong = {}
    for check in CHECKS:
        torch.manual_seed(0)
        try:
            check()
        except Exception:
            wrong[check.__name__] = traceback.format_exc()
    json.dump(wrong, sys.stdout)


if __name__ == "__main__":
    main()
