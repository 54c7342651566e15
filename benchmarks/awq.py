"""Quantizers side by side on one model, the same calibration and the same test tokens, in one run.

    python benchmarks/awq.py --model tiny                      # any machine
    python benchmarks/awq.py --model phi-3.5-mini-shape        # a GPU: 3.8 B random weights, made on the spot

Ours, AutoAWQ, Olive's GPTQ, RTN and k-quant: seconds (with load and save), peak GPU memory, KL divergence and
perplexity to the original on held-out tokens, top-1 agreement. Prints a table, or --json.
"""

import argparse
import functools
import gc
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from synthetic import random_phi
from torch import Tensor

import phicli  # noqa: F401  (turns telemetry off)

sys.path.pop(0)  # this folder, whose awq.py would hide the package awq
from phicli.config import QuantizeConfig
from phicli.hub.models import resolve_model
from phicli.quantization.calibration import calibration_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint

HELD_OUT = Path(__file__).parent.parent / "data" / "data_eval_travel.jsonl"
METHODS = ("ours", "ours-nearest", "autoawq", "olive-gptq", "olive-rtn", "olive-kquant")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--layers", type=int, default=32, help="of the random model")
    parser.add_argument("--methods", default=",".join(METHODS), help="and ours-refine-STEPS, autoround-STEPS")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--calibration", type=Path, help="text or JSONL instead of the package's text")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--test", type=int, default=8, help="sequences to judge on, of each text")
    parser.add_argument("--test-text", type=Path, nargs="*", default=[HELD_OUT], help="texts or rows to judge on")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--phases", action="store_true", help="where the time of ours goes, on stderr")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scratch = Path(tempfile.mkdtemp(prefix="phicli-awq-"))
    rows = []
    try:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            random = args.model == "phi-3.5-mini-shape"
            folder = random_phi(scratch / f"model-{seed}", args.layers, seed) if random else resolve_model(args.model)
            tokens, tests = random_tokens(args, seed) if random else real_tokens(folder, args, seed)
            originals = {name: reference_logits(folder, test, device) for name, test in tests.items()}
            for method in args.methods.split(","):
                out = scratch / "out"
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                row = measure(method, folder, out, tokens, device, args.group_size, seed)
                phases = row.pop("phases", None)
                if args.phases and phases:
                    print(f"{method}: {phases}", file=sys.stderr)
                for name, test in tests.items() if "error" not in row else [("", Tensor())]:
                    judged = quality(folder, out, test, originals[name], device) if name else {}
                    rows.append({"seed": seed, "method": method, "text": name, **row, **judged})
                    print(rows[-1], file=sys.stderr, flush=True)
            if random:
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(rows, args, device)


def random_tokens(args: argparse.Namespace, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    tokens, test = (torch.randint(8, 400, (n, args.seq_len), generator=g) for n in (args.samples, args.test))
    return tokens, {"random": test}


def real_tokens(folder: Path, args: argparse.Namespace, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The package's text or the file given for calibration, the others for the test, the same for every seed."""
    def packed(file: Path | None, samples: int, seed: int) -> Tensor:
        config = QuantizeConfig(calibration=str(file) if file else None, samples=samples, seq_len=args.seq_len)
        return calibration_tokens(folder, config.but(seed=seed))

    return packed(args.calibration, args.samples, seed), {f.stem: packed(f, args.test, 0) for f in args.test_text}


def measure(method: str, folder: Path, out: Path, tokens: Tensor, device: str, group_size: int, seed: int) -> dict:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun, extra = time.perf_counter(), {}
    try:
        if method.startswith("ours"):
            rounding = "nearest" if method.endswith("nearest") else "gptq"
            done = quantize_checkpoint(folder, out, tokens, shape=GridShape(4, group_size), rounding=rounding,
                                       device=device, refine=int(method.partition("refine-")[2] or 0), seed=seed)
            extra["phases"] = done.phase_seconds
        elif method == "autoawq":
            autoawq(folder, out, tokens, group_size)
        elif method.startswith("autoround"):
            autoround(folder, out, tokens, group_size, int(method.partition("-")[2] or 200), seed)
        else:
            olive(method.removeprefix("olive-"), folder, out, tokens, device, group_size)
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"[:200]}
    finally:
        free()
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"seconds": round(seconds, 2), "gpu_gb": round(peak, 2), **extra}


def autoawq(folder: Path, out: Path, tokens: Tensor, group_size: int) -> None:
    """As Olive's pass calls it, but also on a CPU, where that pass refuses."""
    from awq import AutoAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer
    from transformers import AutoTokenizer

    if not hasattr(AwqQuantizer._compute_best_scale, "__wrapped__"):
        AwqQuantizer._compute_best_scale = on_copies(AwqQuantizer._compute_best_scale)
    dtype = "auto" if torch.cuda.is_available() else torch.float32  # fp16 on a CPU: three times the time
    model = AutoAWQForCausalLM.from_pretrained(str(folder), safetensors=True, device_map=None, torch_dtype=dtype)
    settings = {"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "gemm"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.quantize(tokenizer, quant_config=settings, calib_data=tokens.tolist(), max_calib_samples=len(tokens),
                   max_calib_seq_len=tokens.shape[1])
    model.save_quantized(str(out))
    tokenizer.save_pretrained(out)


def autoround(folder: Path, out: Path, tokens: Tensor, group_size: int, steps: int, seed: int) -> None:
    """Intel's AutoRound with its own settings, in batches of 8 sequences, saved in AutoAWQ's format."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    rounder = AutoRound(model, AutoTokenizer.from_pretrained(folder), bits=4, group_size=group_size, sym=False,
                        iters=steps, nsamples=len(tokens), seqlen=tokens.shape[1], batch_size=8, seed=seed,
                        dataset=list(tokens.split(8)))
    rounder.quantize_and_save(str(out), format="auto_awq")
    made = next(out.rglob("config.json")).parent  # a folder of its own within
    for path in list(made.iterdir()) if made != out else []:
        path.rename(out / path.name)


def on_copies(search):
    """AutoAWQ's search scales weights in place and puts back what `.cpu()` kept, which on a CPU are the scaled ones.

    Its model would no longer compute the same function there. With copies it searches as it does on a GPU.
    """
    @functools.wraps(search)
    def searched(self, x, w_mean, x_mean, module, *more, **kwargs):
        plain = module.state_dict
        module.state_dict = lambda: {name: tensor.clone() for name, tensor in plain().items()}
        try:
            return search(self, x, w_mean, x_mean, module, *more, **kwargs)
        finally:
            del module.state_dict

    return searched


def olive(name: str, folder: Path, out: Path, tokens: Tensor, device: str, group_size: int) -> None:
    from safetensors.torch import save_file

    from phicli.quantization.olive_pass import tokens_data_config
    from phicli.workflow.olive import run_pass

    config = {"bits": 4, "group_size": group_size, "sym": False}
    if name == "gptq":
        save_file({"tokens": tokens}, out.parent / "tokens.safetensors")
        config["data_config"] = tokens_data_config(out.parent / "tokens.safetensors")
    run_pass({"gptq": "Gptq", "rtn": "Rtn", "kquant": "KQuant"}[name], config, folder, out, device=device)


@torch.no_grad()
def reference_logits(folder: Path, test: Tensor, device: str) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    dtype = torch.float16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)
    logits = [model(row[None].to(device)).logits[0].float().log_softmax(-1).cpu() for row in test]
    del model
    free()
    return logits


@torch.no_grad()
def quality(folder: Path, out: Path, test: Tensor, original: list[Tensor], device: str) -> dict:
    """KL to the original in nats a token, both perplexities, top-1 agreement, of the checkpoint as it was written."""
    from phicli.checkpoints.loading import load_base

    dtype = torch.float16 if device == "cuda" else torch.float32
    model = load_base(out, device, dtype)
    kl, same, loss, loss_before, count = 0.0, 0, 0.0, 0.0, 0
    for row, before in zip(test, original, strict=True):
        after = model(row[None].to(device)).logits[0].float().log_softmax(-1).cpu()
        kl += float((before.exp() * (before - after)).sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
        target = row[1:, None]
        loss -= float(after[:-1].gather(1, target).sum())
        loss_before -= float(before[:-1].gather(1, target).sum())
        count += len(row)
    del model
    free()
    predicted = count - len(test)
    return {"kl": round(kl / count, 5), "top1": round(same / count, 4),
            "ppl": round(float(torch.tensor(loss / predicted).exp()), 3),
            "ppl_original": round(float(torch.tensor(loss_before / predicted).exp()), 3)}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def report(rows: list[dict], args: argparse.Namespace, device: str) -> None:
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    if args.json:
        print(json.dumps({"machine": machine, "model": args.model, "rows": rows}, indent=2))
        return
    print(f"{args.model}, {args.samples} x {args.seq_len} tokens, {machine}")
    print(f"{'seed':>4} {'method':16} {'text':16} {'seconds':>8} {'GPU GB':>7} {'KL':>9} {'top-1':>7} {'ppl':>9}")
    for r in rows:
        if "error" in r:
            print(f"{r['seed']:>4} {r['method']:16} {r['error']}")
        else:
            figures = f"{r['seconds']:>8} {r['gpu_gb']:>7} {r['kl']:>9} {r['top1']:>7} {r['ppl']:>9}"
            print(f"{r['seed']:>4} {r['method']:16} {r['text'][:16]:16} {figures}")


if __name__ == "__main__":
    main()
