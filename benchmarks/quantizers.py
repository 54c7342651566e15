"""Quantizers of others and ours behind one function each: a model's folder in, a folder or GGUF file out."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from phicli.export.gguf import convert_to_gguf, find_converter
from phicli.quantization.generated import generated_tokens
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint
from phicli.resources.estimates import GENERATED


class Work(NamedTuple):
    """What is quantized, and how. tokens: to calibrate on, int64 (sequences, length). converter: llama.cpp's script."""

    folder: Path
    tokens: Tensor
    device: str
    group_size: int
    seed: int
    converter: str | None


def quantize(method: str, work: Work, out: Path) -> dict[str, float]:
    """Write the method's result into an empty folder; the seconds of the phases of ours."""
    name, _, detail = method.partition("-")
    if name == "ours":
        return ours(work, out, detail)
    others = {"autoawq": autoawq, "autoround": autoround, "olive": olive, "gguf": gguf}
    others[name](work, out, detail)
    return {}


def ours(work: Work, out: Path, detail: str) -> dict[str, float]:
    parts = detail.split("-")  # nearest, refine and a number, generated
    steps = int(parts[parts.index("refine") + 1]) if "refine" in parts else 0
    tokens = with_generated(work, GENERATED[work.device]).tokens if "generated" in parts else work.tokens
    return quantize_checkpoint(work.folder, out, tokens, shape=GridShape(4, work.group_size),
                               rounding="nearest" if "nearest" in parts else "gptq", device=work.device, refine=steps,
                               seed=work.seed).phase_seconds


def with_generated(work: Work, count: int) -> Work:
    """So many sequences that the model writes besides, as `phicli quantize --generated` has it."""
    written = generated_tokens(work.folder, count, work.tokens.shape[1], work.device, work.seed)
    tokens = torch.cat([work.tokens, written])
    return work._replace(tokens=tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(work.seed))])


def autoawq(work: Work, out: Path, _: str) -> None:
    """As Olive's pass calls it, but also on a CPU, where that pass refuses."""
    from awq import AutoAWQForCausalLM
    from awq.quantize.quantizer import AwqQuantizer
    from transformers import AutoTokenizer

    if not hasattr(AwqQuantizer._compute_best_scale, "__wrapped__"):
        AwqQuantizer._compute_best_scale = on_copies(AwqQuantizer._compute_best_scale)
    dtype = "auto" if torch.cuda.is_available() else torch.float32  # fp16 on a CPU: three times the time
    model = AutoAWQForCausalLM.from_pretrained(str(work.folder), safetensors=True, device_map=None, torch_dtype=dtype)
    settings = {"zero_point": True, "q_group_size": work.group_size, "w_bit": 4, "version": "gemm"}
    tokenizer = AutoTokenizer.from_pretrained(work.folder)
    model.quantize(tokenizer, quant_config=settings, calib_data=work.tokens.tolist(),
                   max_calib_samples=len(work.tokens), max_calib_seq_len=work.tokens.shape[1])
    model.save_quantized(str(out))
    tokenizer.save_pretrained(out)


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


def autoround(work: Work, out: Path, steps: str) -> None:
    """Intel's AutoRound with its own settings, in batches of 8 sequences, saved in AutoAWQ's format."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float16 if work.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(work.folder, dtype=dtype)
    rounder = AutoRound(model, AutoTokenizer.from_pretrained(work.folder), bits=4, group_size=work.group_size,
                        sym=False, iters=int(steps or 200), nsamples=len(work.tokens), seqlen=work.tokens.shape[1],
                        batch_size=8, seed=work.seed, dataset=list(work.tokens.split(8)))
    rounder.quantize_and_save(str(out), format="auto_awq")
    made = next(out.rglob("config.json")).parent  # a folder of its own within
    for path in list(made.iterdir()) if made != out else []:
        path.rename(out / path.name)


def olive(work: Work, out: Path, name: str) -> None:
    from safetensors.torch import save_file

    from phicli.quantization.olive_pass import tokens_data_config
    from phicli.workflow.olive import run_pass

    config = {"bits": 4, "group_size": work.group_size, "sym": False}
    if name == "gptq":
        save_file({"tokens": work.tokens}, out.parent / "tokens.safetensors")
        config["data_config"] = tokens_data_config(out.parent / "tokens.safetensors")
    run_pass({"gptq": "Gptq", "rtn": "Rtn", "kquant": "KQuant"}[name], config, work.folder, out, device=work.device)


def gguf(work: Work, out: Path, kind: str) -> None:
    """llama.cpp's own quantizer of the linears; embeddings stay in 16 bits, as with all others here."""
    tool = shutil.which("llama-quantize")
    if tool is None:
        raise FileNotFoundError("no llama-quantize on PATH")
    convert_to_gguf(find_converter(work.converter), work.folder, out / "f16.gguf", "f16")
    subprocess.run([tool, "--token-embedding-type", "f16", "--output-tensor-type", "f16", out / "f16.gguf",
                    out / "model.gguf", kind.upper(), "1"], check=True, capture_output=True)
    (out / "f16.gguf").unlink()
