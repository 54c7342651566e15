"""GPU memory of a training step and its speed: our settings beside plain peft, and Liger's kernels where installed.

    python benchmarks/training_memory.py             # 3.8 B in Phi-4-mini's shape, LoRA of rank 64 on all linears
    python benchmarks/training_memory.py --only ours
    python benchmarks/training_memory.py --count     # no GPU: bytes that a layer keeps for its backward pass

ours: the command itself on an int4 base (random integers): the fast setting, at most 8 GB, and one row of 8,192 tokens
at most 24 GB. The others, each in a process of its own, on an unquantized base in bfloat16 with gradient checkpointing,
as Olive's LoRA pass and most recipes train: `olive` rows padded to 1,024 tokens, `peft` to the longest of the batch,
`liger` the same with Liger's kernels (pip install liger-kernel). Peak: what torch has allocated at most.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from synthetic import PHI4, random_awq_checkpoint

ROWS = Path(__file__).parent.parent / "data" / "data_sample_travel.jsonl"
OURS: dict[str, list[Any]] = {
    "ours, fast": [],
    "ours, at most 8 GB": ["--gpu-memory", 8],
    "ours, 8,192 tokens, at most 24 GB": ["--gpu-memory", 24, "--seq-len", 8192, "--batch-size", 1],
}
OTHERS = ("olive", "peft", "liger")
LONG = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"ours, or one of {', '.join(OTHERS)}")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="of ours, in turns")
    parser.add_argument("--count", action="store_true", help="bytes kept, of one layer on a CPU")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count:
        os.environ["TRITON_INTERPRET"] = "1"
        count_kept()
        return
    if args.worker:
        print(json.dumps(train_plainly(args.worker, args.layers, min(args.steps, 20))))
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.layers} layers of Phi-4-mini's shape")
    print(f"{'':36}{'peak':>10}{'tokens/s':>10}")
    if args.only in (None, "ours"):
        measure_ours(args)
    for name in (other for other in OTHERS if args.only in (None, other)):
        command = [sys.executable, __file__, "--worker", name, "--layers", str(args.layers), "--steps", str(args.steps)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name:36}{done.stderr.strip().splitlines()[-1][:80]}")
        else:
            show(name, json.loads(done.stdout.splitlines()[-1]))


def show(name: str, found: dict[str, Any]) -> None:
    print(f"{name:36}{found['gpu_bytes'] / 1e9:7.2f} GB{found['tokens_per_second']:10,.0f}", flush=True)


def measure_ours(args: argparse.Namespace) -> None:
    """Each setting in turn, in rounds; what it has warned of stands below its line."""
    with tempfile.TemporaryDirectory(prefix="phicli-memory-") as scratch:
        base = random_awq_checkpoint(Path(scratch) / "awq", args.layers, seed=0, shape=PHI4)
        long = Path(scratch) / "long.jsonl"
        text = " ".join(json.loads(line)["response"] for line in ROWS.read_text().splitlines())
        long.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(12)))
        for _ in range(args.rounds):
            for name, options in OURS.items():
                command = [sys.executable, "-m", "phicli", "finetune", "--base", base, "--root", Path(scratch) / "root",
                           "--data", long if LONG in options else ROWS, "--eval-split", 0, "--max-steps",
                           10 if LONG in options else args.steps, "--device", "cuda", "--force", "--json", *options]
                done = subprocess.run([*map(str, command)], capture_output=True, text=True)
                if done.returncode:
                    print(f"{name:36}{done.stderr.strip().splitlines()[-1][:80]}")
                    continue
                show(name, json.loads(done.stdout)["quality"])
                for line in done.stderr.splitlines():
                    if "out of memory" in line:
                        print(f"    {line}")


def count_kept(tokens: int = 48) -> None:
    """Bytes a token that a second layer adds to what is kept for the backward pass: on a CPU, which interprets our
    kernels.
    """
    from phicli.training.recompute import LAYER, MLP, NOTHING

    for fused, whose in ((False, "theirs"), (True, "ours")):
        for level, name in ((NOTHING, "nothing twice"), (MLP, "the MLP of each layer"), (LAYER, "each layer")):
            one, two = (kept_bytes(layers, level, tokens, fused) for layers in (1, 2))
            print(f"{whose:8}{name:24}{(two - one) / tokens / 1e3:8.1f} KB a token and layer", flush=True)


def kept_bytes(layers: int, level: int, tokens: int, fused: bool) -> int:
    """All tensors that a forward pass keeps and that have a side as long as the row; bytes."""
    from peft import LoraConfig, get_peft_model
    from transformers import Phi3Config, Phi3ForCausalLM

    from phicli.training.fused.fusing import Fused
    from phicli.training.recompute import KeptDropout, Recompute

    torch.set_default_dtype(torch.bfloat16)
    model: Any = Phi3ForCausalLM(Phi3Config(**PHI4 | {"vocab_size": 32064}, num_hidden_layers=layers))
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    adapted: Any = get_peft_model(model, LoraConfig(r=64, lora_dropout=0.05, target_modules="all-linear"))
    ours = Fused(adapted) if fused else None
    recompute = Recompute(adapted.get_base_model())
    recompute.keep_masks()
    if level:
        recompute.set(level)
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tokens in tensor.shape:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    masks = list[torch.Tensor]()
    for module in adapted.modules():
        if isinstance(module, KeptDropout):
            module.register_forward_hook(lambda *_: masks.extend(recompute.masks or ()))
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # as training does on a GPU
    adapted.train()
    ids = torch.arange(tokens)[None]
    with (torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
          torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
          ours.running() if ours else contextlib.nullcontext()):
        hidden = adapted.get_base_model().get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    for mask in masks:
        keep(mask.view(1, tokens, -1))
    return sum(size for size, _ in kept.values())


def train_plainly(kind: str, layers: int, steps: int) -> dict[str, float]:
    """transformers and peft, unquantized, on the same rows in an order of their own; half of the steps warm up."""
    from peft import LoraConfig, get_peft_model
    from transformers import Phi3Config, Phi3ForCausalLM

    from phicli.hub.models import BUILT_IN
    from phicli.text import TextCodec

    if kind == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_phi3

        apply_liger_kernel_to_phi3()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model: Any = Phi3ForCausalLM(Phi3Config(**PHI4, num_hidden_layers=layers))
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    adapted: Any = get_peft_model(model, LoraConfig(r=64, lora_alpha=128, lora_dropout=0.05,
                                                    target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4, fused=True)
    codec = TextCodec(BUILT_IN / "tiny")
    rows = [codec.encode_text(line)[:1024] for line in ROWS.read_text().splitlines()]
    adapted.train()
    tokens, begun = 0, 0.0
    for step in range(steps):
        if step == steps // 2:
            torch.cuda.synchronize()
            tokens, begun = 0, time.perf_counter()
        batch = [rows[(step * 8 + i) % len(rows)] for i in range(8)]
        length = 1024 if kind == "olive" else max(map(len, batch))
        ids = torch.zeros(8, length, dtype=torch.long)
        labels = torch.full((8, length), -100)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
        with torch.autocast("cuda", torch.bfloat16):
            adapted(input_ids=ids.cuda(), labels=labels.cuda()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(map(len, batch))
    torch.cuda.synchronize()
    return {"gpu_bytes": torch.cuda.max_memory_allocated(),
            "tokens_per_second": tokens / (time.perf_counter() - begun)}


if __name__ == "__main__":
    main()
