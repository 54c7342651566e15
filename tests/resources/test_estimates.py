"""Sizes of models and what the steps need, against real files, configs and runs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from safetensors import safe_open

from phicli.errors import BadInput, Missing
from phicli.hardware.devices import container_limit
from phicli.resources import (
    Estimate,
    after_quantizing,
    announce,
    estimate_chat,
    estimate_evaluate,
    estimate_finetune,
    estimate_optimize,
    estimate_quantize,
    keeps_unpacked,
    size_of_config,
    size_of_folder,
    size_of_model,
)
from phicli.resources.shortage import within_memory
from phicli.resources.times import seconds_on_cpu


class Said:
    """A Progress that keeps what it is told."""

    def __init__(self):
        self.notes, self.warnings = [], []
        self.note, self.warn = self.notes.append, self.warnings.append


def test_size_of_a_folder_is_that_of_its_tensors_and_of_its_config(tiny):
    inner = outer = 0
    with safe_open(tiny / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.ndim == 2:
                inner += tensor.numel() * (".layers." in name)
                outer += tensor.numel() * (".layers." not in name)
    size = size_of_folder(tiny)
    assert (size.layer_params, size.outer_params) == (inner, outer)
    assert size.weight_bytes == (tiny / "model.safetensors").stat().st_size
    told = size_of_config(json.loads((tiny / "config.json").read_text()), "a test")
    ours = replace(size, weight_bytes=told.weight_bytes, source=told.source)
    assert replace(told, widest=ours.widest) == ours and told.widest == ours.widest
    assert size_of_model("tiny") == size


def test_a_quantized_folder_has_the_parameters_of_the_original_and_the_bytes_foretold(tiny, tiny_awq):
    original, quantized = size_of_folder(tiny), size_of_folder(tiny_awq)
    assert quantized.quantized and not original.quantized
    for name in ("layer_params", "outer_params", "vocab", "hidden", "layers", "widest", "largest", "edges"):
        assert getattr(quantized, name) == getattr(original, name), name
    assert after_quantizing(original).weight_bytes == pytest.approx(quantized.weight_bytes, rel=0.05)


def test_sizes_without_a_folder():
    size = size_of_model("microsoft/Phi-3.5-mini-instruct")
    assert size.params == pytest.approx(3.82e9, rel=0.002) and size.weight_bytes == pytest.approx(7.64e9, rel=0.002)
    assert size_of_model("microsoft/phi-4").params == pytest.approx(14.66e9, rel=0.005)
    guessed = size_of_model("someone/Great-7B-chat")
    assert guessed.params == pytest.approx(7e9, rel=0.02) and "name" in guessed.source
    assert size_of_model("someone/great") is None
    assert size_of_model("azureml://registries/r/models/m/versions/1") is None
    assert size_of_config({"hidden_size": 8}, "") is None
    with pytest.raises(BadInput):
        size_of_model("./no-such-folder")


def test_more_work_needs_more():
    size = size_of_model("microsoft/Phi-3.5-mini-instruct")
    assert estimate_quantize(size, "cuda", 128, 512, 0, 0).gpu == pytest.approx(3.5e9, rel=0.3)  # 3.0 GB and CUDA's
    assert estimate_quantize(size, "cuda", 128, 512, generated=0).gpu == pytest.approx(7.4e9, rel=0.3)  # 6.9 measured
    assert estimate_quantize(size, "cpu", 256, 512).memory > estimate_quantize(size, "cpu", 128, 512).memory
    assert estimate_quantize(size, "cpu", 128, 512).gpu == 0
    assert estimate_quantize(size, "cpu", 128, 512, 60).memory > estimate_quantize(size, "cpu", 128, 512).memory
    assert estimate_finetune(size, "cuda", 64, 8).gpu > estimate_finetune(size, "cuda", 16, 8).gpu
    assert estimate_chat(size, "cuda").gpu < estimate_evaluate(size, "cuda", 1024).gpu


def test_a_vocabulary_is_counted_once_where_it_is_one_matrix():
    """Phi-4-mini ties embedding and head, Phi-3.5-mini does not."""
    tied, apart = map(size_of_model, ("microsoft/Phi-4-mini-instruct", "microsoft/Phi-3.5-mini-instruct"))
    for size, settings, matrices in ((tied, ("int8", "int8"), 1), (tied, ("float", "int8"), 5), (apart, (), 2)):
        wanted = size.layer_params * 0.52 + matrices * size.vocab * size.hidden
        assert estimate_optimize(size, "cpu", *settings).disk == pytest.approx(wanted, rel=0.03)


def test_finetune_tells_what_it_needs_and_what_it_takes_where_there_is_room():
    """Seen on an H200, CUDA's own 0.5 GB not counted, rows of up to 80 tokens: 6.3 GB packed, 12.8 GB unpacked."""
    original = size_of_model("microsoft/Phi-4-mini-instruct")
    quantized = after_quantizing(original)
    estimate = estimate_finetune(quantized, "cuda", 64, 8, 80)
    assert estimate.gpu - 0.5e9 == pytest.approx(6.3e9, rel=0.1)
    assert estimate.gpu + estimate.extra - 0.5e9 == pytest.approx(12.8e9, rel=0.1)
    assert estimate.extra == 2 * quantized.layer_params
    loaded = estimate.extra_from - estimate.extra / 0.25  # what is free once the base is loaded decides
    assert 2e9 < loaded < 3.5e9
    assert keeps_unpacked(estimate.extra, estimate.extra_from - loaded + 1) and not keeps_unpacked(
        estimate.extra, estimate.extra_from - loaded)
    plain = estimate_finetune(original, "cuda", 64, 8, 80)  # nothing to unpack
    assert plain.extra == 0 and plain.gpu == pytest.approx(estimate.gpu + estimate.extra, rel=0.15)


@pytest.mark.parametrize("free", [10**12, 10**6])
def test_the_base_keeps_its_weights_unpacked_where_the_line_says_so(tiny_awq, tmp_path, monkeypatch, free):
    import torch

    from phicli.checkpoints import loading
    from phicli.resources import announcing

    for module in (loading, announcing):
        monkeypatch.setattr(module, "available_memory", lambda device: free)
    estimate, said = estimate_finetune(size_of_folder(tiny_awq), "cpu", 8, 8, 150), Said()
    announce("finetune", estimate, tmp_path, said)
    base = loading.load_base(tiny_awq, "cpu", torch.float32)
    kept = [m.dense for m in base.modules() if isinstance(m, loading.Int4Linear) and m.dense is not None]
    assert sum(weight.nbytes for weight in kept) == (estimate.extra if free > estimate.extra_from else 0)
    assert (", takes about " in (said.notes + said.warnings)[0]) == bool(kept)


def test_estimate_for_a_run_is_near_what_the_run_takes(tiny, tmp_path):
    command = [sys.executable, "-m", "phicli", "quantize", "-m", "tiny", "--root", str(tmp_path), "--samples", "8",
               "--seq-len", "128", "--device", "cpu"]
    small = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=-3, stderr=-3); "
             "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)")
    # Started from here, the peak would be this process's own: a child has its parent's until it is another program.
    done = subprocess.run([sys.executable, "-c", small, *command], check=True, capture_output=True, text=True)
    estimate = estimate_quantize(size_of_folder(tiny), "cpu", 8, 128).memory
    assert estimate / 2 < int(done.stdout) < estimate * 2


def test_announcing_notes_what_is_enough_and_warns_of_what_is_not(tmp_path):
    said = Said()
    announce("bake", Estimate(1e6, 0, 1e3), tmp_path / "not" / "there", said)
    assert said.notes[0].startswith("bake needs about 1.0 MB of memory (has ") and not said.warnings
    announce("bake", Estimate(1e18, 0, 1e18), tmp_path, said)
    assert "memory and disk may not be enough" in said.warnings[0] and len(said.notes) == 1


def test_a_containers_limit_counts(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert container_limit(tmp_path) is None
    write("memory/memory.limit_in_bytes", "4000\n")
    write("memory/memory.usage_in_bytes", "1500\n")
    write("memory/memory.stat", "cache 700\ntotal_inactive_file 500\n")
    assert container_limit(tmp_path) == (4000, 1000)
    write("memory.max", "2000\n")
    write("memory.current", "900\n")
    write("memory.stat", "anon 5\ninactive_file 100\n")
    assert container_limit(tmp_path) == (2000, 800)
    write("memory.max", "max\n")
    assert container_limit(tmp_path) == (4000, 1000)


def no_room(*args, **kwargs):
    """Torch's own error: no machine has a petabyte."""
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(("step", "place", "setting"), [
    ("quantize", "phicli.quantization.olive_pass.quantize_checkpoint", "--samples"),
    ("finetune", "phicli.training.passes.load_base", "--lora-r"),
    ("evaluate", "phicli.evaluation.measuring.log_softmax", "--seq-len"),
    ("chat", "phicli.inference.genai_model.ops_of", "end other programs")])
def test_memory_that_ran_out_names_the_settings_to_change(
    cli, optimized, tiny, tmp_path, monkeypatch, step, place, setting
):
    where = {"quantize": ("--model", tiny, "--root", tmp_path), "finetune": ("--base", tiny, "--root", tmp_path),
             "evaluate": ("--force", "--root", optimized), "chat": ("--prompt", "hello", "--root", optimized)}
    import_module(place.rpartition(".")[0])
    monkeypatch.setattr(place, no_room)
    done = cli(step, *where[step], "--device", "cpu")
    assert done.code == 4 and "not enough memory: tried to allocate 1125899906842624 bytes\n" in done.err
    hint = done.err.partition("try: ")[2].splitlines()[0]
    assert setting in hint
    for option in re.findall(r"--[a-z-]+", hint):
        assert option in cli(step, "--help").out


@pytest.mark.parametrize(("said", "told"), [
    ("CUDA out of memory. Tried to allocate 384.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 124.06 MiB is"
     " free. Process 7 has 136.67 GiB memory in use. Of the allocated memory 2.32 GiB is allocated by PyTorch",
     "Tried to allocate 384.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 124.06 MiB is free"),
    ("Exception during initialization: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
     "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for "
     "requested buffer of size 50331648\n", "Failed to allocate memory for requested buffer of size 50331648"),
    ("Could not allocate the key-value cache buffer of shape: [batch_size (1), num_key_value_heads (32), max_length "
     "(1024), head_size (96)] for 32 layers. Try reducing the max_length requested or reducing the batch size.",
     "Could not allocate the key-value cache buffer"),
    ("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda for more "
     "information.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1", "CUDA error: out of memory")])
def test_of_what_libraries_say_the_telling_part_is_told(said, told):
    with pytest.raises(Missing) as error, within_memory("chat"):
        raise RuntimeError(said)
    assert error.value.message == f"not enough memory: {told}" and "--device cpu" in error.value.hint


def test_of_the_hosts_memory_no_other_device_is_said_to_help():
    with pytest.raises(Missing) as error, within_memory("quantize"):
        raise MemoryError
    assert error.value.message == "not enough memory"
    assert error.value.hint == "fewer --samples, a shorter --seq-len, or end other programs"


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), within_memory("quantize"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("step", ["quantize", "finetune"])
def test_a_gpu_too_small(cli, tiny, tmp_path, step):
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + 2**20) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        done = cli(step, "--model" if step == "quantize" else "--base", tiny, "--root", tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.code == 4 and "not enough memory" in done.err and "--device cpu" in done.err


def test_the_time_of_training_follows_the_rank(tiny):
    size = size_of_folder(tiny)
    few, usual, many = (seconds_on_cpu("finetune", size, 1e9, 0, 800, rank) for rank in (1, 64, 256))
    assert few < usual < many and usual - few == pytest.approx((many - usual) * 63 / 192)
    assert seconds_on_cpu("quantize", size, 1e9, 1000, 0, 1) == seconds_on_cpu("quantize", size, 1e9, 1000, 0, 256)
