"""The whole lab at Phi-3.5-mini's size beside the upstream way of each step, in one run.

    python benchmarks/gpu_lab.py                      # a GPU: 3.8 B random weights, made on the spot
    python benchmarks/gpu_lab.py --model tiny         # the same on any machine and model: tries the script

Ours are the commands themselves, each a process of its own. Upstream: `olive finetune` on the unquantized model (it
cannot train on a quantized one) with the padding that it chooses, genai's builder on our AWQ checkpoint and its default
settings, adapters as graph inputs. AutoAWQ takes minutes at this size: see benchmarks/quality.py.
Decoding: 512 tokens of prompt, then one at a time, the best of three. Prints a table, or --json.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from synthetic import random_phi

from phicli.benchmarking.turn import Case
from phicli.benchmarking.worker import Contender, Worker
from phicli.hub.models import resolve_model
from phicli.quantization import CALIBRATION

LAB_TEMPLATE = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"
ROWS = Path(__file__).parent.parent / "data" / "data_sample_travel.jsonl"
CUDA = torch.cuda.is_available()
PROMPT, NEW = 512, 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="instead of random weights")
    parser.add_argument("--layers", type=int, default=32, help="of the random model")
    parser.add_argument("--steps", type=int, default=100, help="of our training")
    parser.add_argument("--olive-steps", type=int, default=20, help="of Olive's")
    parser.add_argument("--skip", default="", help="parts to leave out: builder, olive, inputs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="phicli-lab-"))
    try:
        rows = Lab(args, scratch).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    machine = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
        return
    print(f"{args.model or f'{args.layers} layers of Phi-3.5-mini, random'}; {machine}; torch {torch.__version__}")
    for row in rows:
        print("  ".join(f"{value}" for value in row.values()))


class Lab:
    def __init__(self, args: argparse.Namespace, scratch: Path):
        self.args, self.scratch, self.root = args, scratch, scratch / "root"
        self.skip = set(args.skip.split(","))
        self.rows: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        parts: list[Callable[[], None]] = [self.quantize, self.finetune, self.optimize, self.decode]
        parts += [part for name, part in (("builder", self.builder), ("inputs", self.inputs), ("olive", self.olive))
                  if name not in self.skip]
        self.model = (resolve_model(self.args.model) if self.args.model
                      else random_phi(self.scratch / "phi", self.args.layers, 0))
        for part in parts:
            try:
                part()
            except Exception as e:  # the others are worth having
                self.row(part.__name__, "failed", error=f"{type(e).__name__}: {e}"[-300:])
        return self.rows

    def row(self, step: str, who: str, **figures: Any) -> None:
        self.rows.append({"step": step, "who": who, **{k: f"{k} {v}" for k, v in figures.items()}})
        print("  ".join(map(str, self.rows[-1].values())), file=sys.stderr, flush=True)

    def phicli(self, *arguments: Any) -> tuple[float, dict[str, Any]]:
        """Run a command; seconds of the process, and its result."""
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "phicli", *map(str, arguments), "--root", self.root, "--json"],
                              capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-500:])
        return time.perf_counter() - begun, json.loads(done.stdout)

    def quantize(self) -> None:
        text = self.scratch / "calibration.txt"  # twice: the built-in tokenizer makes 67 sequences of 512 of it
        text.write_text(CALIBRATION.read_text(encoding="utf-8") * 2, encoding="utf-8")
        seconds, result = self.phicli("quantize", "--model", self.model, "--calibration", text)
        quality = result["quality"]
        count = sum(quality["calibration_sequences"].values())
        self.row("quantize", f"phicli, {count} sequences", process=f"{seconds:.1f} s", own=f"{result['seconds']:.1f} s",
                 phases=quality.get("phase_seconds"), gpu=f"{quality['gpu_bytes'] / 1e9:.1f} GB")

    def finetune(self) -> None:
        for name, rank, steps in (("travel", 64, self.args.steps), ("short", 16, 2)):
            seconds, result = self.phicli("finetune", "--data", ROWS, "--name", name, "--lora-r", rank,
                                          "--max-steps", steps, "--eval-split", 0)
            quality = result["quality"]
            rate = quality["tokens_per_second"]
            self.row("finetune", f"phicli, rank {rank}, {steps} steps", process=f"{seconds:.1f} s",
                     own=f"{result['seconds']:.1f} s", steps=f"{quality['tokens'] / rate:.1f} s",
                     rate=f"{rate:.0f} tok/s", gpu=f"{quality.get('gpu_bytes', 0) / 1e9:.1f} GB")

    def optimize(self) -> None:
        for name in ("travel", "short"):
            seconds, result = self.phicli("optimize", "--adapter", name, "--output", self.scratch / f"onnx-{name}")
            self.row("optimize", f"phicli, adapter {name}, {result['settings']['adapter_layout']}",
                     process=f"{seconds:.1f} s", own=f"{result['seconds']:.1f} s")

    def decode(self) -> None:
        self.speed("decode", "phicli, no adapter", self.scratch / "onnx-short", None)
        self.speed("decode", "phicli, rank 16", self.scratch / "onnx-short", "short")
        self.speed("decode", "phicli, rank 64", self.scratch / "onnx-travel", "travel")

    def builder(self) -> None:
        out = self.scratch / "upstream"
        provider = "cuda" if CUDA else "cpu"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", self.root / "awq", "-o", out, "-p",
                   "int4", "-e", provider, "-c", self.scratch / "cache", "--extra_options", "hf_token=false"]
        begun = time.perf_counter()
        subprocess.run([*map(str, command)], check=True, capture_output=True)
        self.row("optimize", "genai's builder", process=f"{time.perf_counter() - begun:.1f} s")
        self.speed("decode", "genai's builder as it comes", out, None, "genai")

    def inputs(self) -> None:
        """Adapters as genai documents them."""
        seconds, _ = self.phicli("optimize", "--adapter", "short", "--output", self.scratch / "onnx-inputs",
                                 "--adapter-layout", "inputs")
        self.row("optimize", "phicli, adapters as inputs", process=f"{seconds:.1f} s")
        self.speed("decode", "adapters as inputs, rank 16", self.scratch / "onnx-inputs", "short")

    def speed(self, step: str, who: str, folder: Path, adapter: str | None, engine: str = "phicli") -> None:
        """Decode in a process of its own, so that each begins with a free GPU."""
        with Worker(Contender(who, engine, str(folder), adapter)) as worker:
            turns = [worker.turn(Case(PROMPT, NEW)) for _ in range(3)]
        self.row(step, who, first=f"{min(turn.first for turn in turns) * 1e3:.1f} ms",
                 rate=f"{max(turn.rate for turn in turns):.1f} tok/s")

    def olive(self) -> None:
        steps = self.args.olive_steps
        command = [sys.executable, "-m", "olive", "finetune", "--method", "lora", "--model_name_or_path", self.model,
                   "--data_name", "json", "--data_files", ROWS, "--text_template", LAB_TEMPLATE, "--lora_r", 64,
                   "--lora_alpha", 128, "--target_modules", "qkv_proj,o_proj,gate_up_proj,down_proj",
                   "--max_steps", steps, "--per_device_train_batch_size", 8, "--output_path", self.scratch / "olive"]
        begun = time.perf_counter()
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=self.scratch)
        seconds, found = time.perf_counter() - begun, re.search(r"train_runtime\W+([\d.]+)", done.stdout + done.stderr)
        if not found:
            raise RuntimeError((done.stdout + done.stderr)[-400:])
        self.row("finetune", f"olive finetune, rank 64, {steps} steps", process=f"{seconds:.1f} s",
                 steps=f"{found[1]} s", each=f"{float(found[1]) / steps:.3f} s")


if __name__ == "__main__":
    main()
