"""Host memory beside the file cache does not grow with the number of layers."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys, threading, time
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from phicli.quantization.grid import GridShape
from phicli.quantization.quantize import quantize_checkpoint

folder, layers = Path(sys.argv[1]), int(sys.argv[2])
model = LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=384, intermediate_size=768, num_attention_heads=6,
                                     num_hidden_layers=layers)).half()
model.save_pretrained(folder / "in")
del model
tokens = torch.randint(3, 128, (4, 64))

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) << 10

def run(out):
    (folder / out).mkdir()
    quantize_checkpoint(folder / "in", folder / out, tokens, shape=GridShape(), rounding="nearest")

before, peak, stop = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
run("out")
stop.set()
thread.join()
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_peak_does_not_grow_with_the_layers(tmp_path):
    peaks = {}
    for layers in (2, 8):
        command = [sys.executable, "-c", CODE, tmp_path / str(layers), layers]
        at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back: counts what is held
        done = subprocess.run(list(map(str, command)), env=at_once, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[layers] = int(done.stdout)
    layer = 4 * (4 * 384 * 384 + 3 * 384 * 768)  # bytes in float32
    waiting = 6 * layer / 7.5  # bytes of the results of six layers, that wait for a shard to be full
    assert peaks[2] > layer
    assert peaks[8] - peaks[2] < waiting + layer  # all weights would be six layers
