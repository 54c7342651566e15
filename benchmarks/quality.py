"""Quantizers side by side on one model, the same calibration and the same test tokens, in one run.

    python benchmarks/quality.py --model tiny                      # any machine
    python benchmarks/quality.py --model phi-3.5-mini-shape        # a GPU: 3.8 B random weights, made on the spot
    PATH=llama.cpp/build/bin:$PATH python benchmarks/quality.py --model FOLDER --group-size 64 --shuffle \\
        --methods ours,autoawq,autoround-20,olive-gptq,gguf-q4_0,gguf-q4_k_m --converter llama.cpp/convert_hf_to_gguf.py

Ours, AutoAWQ, AutoRound, Olive's GPTQ, RTN and k-quant, llama.cpp's quantizer: bits of a weight of the linears in the
file, seconds (with load and save), KL divergence and perplexity to the original on held-out tokens, top-1 agreement, by
one loop in torch. Embeddings and head stay in 16 bits with each. Prints a Markdown table, or --json.
"""

import argparse
import gc
import inspect
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from quantizers import Work, quantize, with_generated
from safetensors.torch import load_file, save_file
from synthetic import random_phi
from torch import Tensor

import phicli  # noqa: F401  (turns telemetry off)
from phicli.config import QuantizeConfig
from phicli.hub.models import read_headers, resolve_model
from phicli.quantization.calibration import calibration_tokens

HERE = Path(__file__).parent.parent
PROSE = ("docs/explained/awq.md", "docs/explained/onnx.md", "docs/tutorial.md", "docs/first-hour.md")
METHODS = ("ours", "ours-nearest", "autoawq", "olive-gptq", "olive-rtn", "olive-kquant")
LAYERS = ("model.layers.", "blk.")  # what names of the tensors in decoder layers begin with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--layers", type=int, default=32, help="of the random model")
    parser.add_argument("--methods", default=",".join(METHODS),
                        help="and ours-refine-STEPS, autoround-STEPS, gguf-TYPE of llama-quantize, which is on PATH; "
                        "ours-generated: calibrated on what the model writes too; ours@32: with that group size")
    parser.add_argument("--converter", help="convert_hf_to_gguf.py of llama.cpp")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--shuffle", action="store_true",
                        help="channels in another order, for weights that were once in 4 bits: see shuffled()")
    parser.add_argument("--calibration", type=Path, help="text or JSONL instead of the package's text")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--generated", type=int, default=0, help="sequences that the model writes, for all methods")
    parser.add_argument("--test", type=int, default=8, help="sequences to judge on, of each text")
    parser.add_argument("--test-text", type=Path, nargs="*", help="texts or rows to judge on, in place of travel rows, "
                        "pages of docs/ and code of Python's")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--phases", action="store_true", help="where the time of ours goes, on stderr")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scratch, rows = Path(tempfile.mkdtemp(prefix="phicli-quality-")), []
    try:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            rows += run(args, seed, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(rows, args)


def run(args: argparse.Namespace, seed: int, scratch: Path) -> list[dict]:
    """A row for each method."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = args.model == "phi-3.5-mini-shape"
    folder = random_phi(scratch / "model", args.layers, seed) if random else resolve_model(args.model)
    if args.shuffle:
        folder = shuffled(folder, scratch / "shuffled")
    tokens, tests = random_tokens(args, seed) if random else real_tokens(folder, args, seed, scratch)
    whole = with_generated(Work(folder, tokens, device, args.group_size, seed, args.converter), args.generated)
    original = load_base(folder, device)
    before = {name: log_probabilities(original, test) for name, test in tests.items()}
    del original
    found = []
    for method in args.methods.split(","):
        name, _, group = method.partition("@")
        work = whole._replace(group_size=int(group or args.group_size))
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        row = {"seed": seed, "method": method, **measure(name, work, out)}
        phases = row.pop("phases", None)
        if args.phases and phases:
            print(f"{method}: {phases}", file=sys.stderr)
        if "error" not in row:
            row["bits"], model = round(bits_per_weight(out, folder), 2), load_base(out, device)
            row["texts"] = {name: compared(before[name], log_probabilities(model, test), test)
                            for name, test in tests.items()}
            del model
        found.append(row)
        print(row, file=sys.stderr, flush=True)
    return found


def random_tokens(args: argparse.Namespace, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    tokens, test = (torch.randint(8, 400, (n, args.seq_len), generator=g) for n in (args.samples, args.test))
    return tokens, {"random": test}


def real_tokens(folder: Path, args: argparse.Namespace, seed: int, scratch: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The package's text or the file given for calibration, the others for the test, the same for every seed."""
    def packed(file: Path | None, samples: int, seed: int) -> Tensor:
        config = QuantizeConfig(calibration=str(file) if file else None, samples=samples, seq_len=args.seq_len)
        return calibration_tokens(folder, config.but(seed=seed))

    texts = {"prose": [(HERE / page).read_text() for page in PROSE],
             "code": [inspect.getsource(module) for module in (json.decoder, json.encoder, argparse)]}
    for name, parts in texts.items():
        (scratch / f"{name}.txt").write_text("\n\n".join(parts))
    usual = {"travel": HERE / "data" / "data_eval_travel.jsonl", **{name: scratch / f"{name}.txt" for name in texts}}
    judged = {file.stem: file for file in args.test_text} if args.test_text else usual
    return packed(args.calibration, args.samples, seed), {n: packed(f, args.test, 0) for n, f in judged.items()}


def shuffled(folder: Path, out: Path) -> Path:
    """A Llama whose channels stand in another order: the same function, and no weight is another number.

    Weights that were once rounded in groups of 32 still lie on one grid in each, which helps methods that have such
    grids and harms those that have others. In another order a group has weights of many of them.
    """
    shutil.copytree(folder, out)
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    g = torch.Generator().manual_seed(0)
    hidden = torch.randperm(config["hidden_size"], generator=g)
    inner = torch.randperm(config["intermediate_size"], generator=g)
    head = torch.randperm(config["hidden_size"] // heads, generator=g)
    values, outputs = (torch.cat([head + i * len(head) for i in range(n)]) for n in (kv_heads, heads))
    rows = {"v_proj": values, "gate_proj": inner, "up_proj": inner, "o_proj": hidden, "down_proj": hidden}
    columns = {"o_proj": outputs, "down_proj": inner}
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        part = name.split(".")[-2]
        if weight.dim() == 1:
            tensors[name] = weight[hidden]
            continue
        weight = weight[rows[part]] if part in rows else weight
        tensors[name] = weight[:, columns.get(part, hidden)].contiguous()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def measure(method: str, work: Work, out: Path) -> dict:
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    try:
        phases = quantize(method, work, out)
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"[:200]}
    finally:
        free()
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() / 1e9 if work.device == "cuda" else 0.0
    return {"seconds": round(seconds, 2), "gpu_gb": round(peak, 2), "phases": phases}


def bits_per_weight(out: Path, folder: Path) -> float:
    """All bytes of the decoder layers in what was written, over the original's weights there."""
    if (file := out / "model.gguf").is_file():
        import gguf

        read = gguf.GGUFReader(file)
        size = sum(int(tensor.n_bytes) for tensor in read.tensors if tensor.name.startswith(LAYERS))
    else:
        size = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in layers_of(out))
    return 8 * size / sum(torch.Size(entry["shape"]).numel() for entry in layers_of(folder))


def layers_of(folder: Path) -> list[dict]:
    return [entry for name, entry in read_headers(folder).items() if name.startswith(LAYERS)]


def load_base(folder: Path, device: str) -> torch.nn.Module:
    """The model as it was written; a GGUF file by transformers, its weights exactly what their integers stand for."""
    from transformers import AutoModelForCausalLM

    from phicli.checkpoints.loading import load_base as load_checkpoint

    dtype = torch.float16 if device == "cuda" else torch.float32
    if (folder / "model.gguf").is_file():
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=dtype).to(device)
    return load_checkpoint(folder, device, dtype)


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, test: Tensor) -> list[Tensor]:
    """Of each sequence, float32 (length, vocabulary)."""
    device = next(model.parameters()).device
    return [model(row[None].to(device)).logits[0].float().log_softmax(-1).cpu() for row in test]


def compared(before: list[Tensor], after: list[Tensor], test: Tensor) -> dict:
    """KL to the original in nats a token, both perplexities, top-1 agreement."""
    kl, same, loss, loss_before = 0.0, 0, 0.0, 0.0
    for row, old, new in zip(test, before, after, strict=True):
        kl += float((old.exp() * (old - new)).sum())
        same += int((old.argmax(-1) == new.argmax(-1)).sum())
        loss, loss_before = (total - float(part[:-1].gather(1, row[1:, None]).sum())
                             for total, part in ((loss, new), (loss_before, old)))
    predicted = test.numel() - len(test)
    return {"kl": round(kl / test.numel(), 5), "top1": round(same / test.numel(), 4),
            "ppl": round(float(torch.tensor(loss / predicted).exp()), 3),
            "ppl_original": round(float(torch.tensor(loss_before / predicted).exp()), 3)}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def report(rows: list[dict], args: argparse.Namespace) -> None:
    cuda = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    if args.json:
        print(json.dumps({"machine": machine, "model": args.model, "rows": rows}, indent=2))
        return
    texts = next((row["texts"] for row in rows if "texts" in row), {})
    original = ", ".join(f"{one['ppl_original']:.1f}" for one in texts.values())
    print(f"{args.model}, {args.samples} x {args.seq_len} tokens, {machine}; {', '.join(texts)}\n\n"
          f"| | seed | bits a weight | seconds | GPU GB | KL | top-1 | perplexity (original {original}) |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        judged = [", ".join(f"{one[key]:.{digits}f}" for one in row.get("texts", {}).values())
                  for key, digits in (("kl", 3), ("top1", 3), ("ppl", 1))]
        cells = [row["error"]] if "error" in row else [row["bits"], row["seconds"], row["gpu_gb"], *judged]
        print("| " + " | ".join(map(str, (row["method"], row["seed"], *cells))) + " |")


if __name__ == "__main__":
    main()
