"""llama.cpp decoding a random model of Phi-3.5-mini's size, as decode.py measures ours: prints its figures as JSON.

    python llama_cpp_decode.py FILE.gguf LAYERS PROMPT NEW THREADS     # with packages llama-cpp-python and gguf

The model has Llama's graph with Phi's sizes, weights in Q4_0 (4.5 bits) and a head in Q8_0; the file is made if it is
not there. One measurement for each line that comes in.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from llama_cpp import Llama

HIDDEN, WIDE, VOCABULARY, HEADS, BLOCK = 3072, 8192, 32064, 32, 32
KINDS = {"Q4_0": 18, "Q8_0": 34}  # bytes of a block: a scale in float16, then the integers


def write_model(path: Path, layers: int) -> None:
    writer, rng = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")

    def linear(name: str, outputs: int, inputs: int, kind: str = "Q4_0") -> None:
        blocks = rng.integers(0, 256, (outputs, inputs // BLOCK, KINDS[kind]), np.uint8)
        blocks[..., :2] = np.array([0.004 if kind == "Q4_0" else 0.0003], np.float16).view(np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=GGMLQuantizationType[kind])

    linear("token_embd", VOCABULARY, HIDDEN)
    linear("output", VOCABULARY, HIDDEN, "Q8_0")
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"blk.{layer}.{name}", HIDDEN, HIDDEN)
        linear(f"blk.{layer}.ffn_gate", WIDE, HIDDEN)
        linear(f"blk.{layer}.ffn_up", WIDE, HIDDEN)
        linear(f"blk.{layer}.ffn_down", HIDDEN, WIDE)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(path: Path, layers: int, prompt: int, new: int, threads: int) -> None:
    if not path.is_file():
        write_model(path, layers)
    begun = time.perf_counter()
    model = Llama(str(path), n_ctx=prompt + new, n_threads=threads, n_threads_batch=threads, verbose=False)
    load = time.perf_counter() - begun
    for _ in sys.stdin:
        model.reset()
        begun = time.perf_counter()
        model.eval([10 + i % 390 for i in range(prompt)])
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        for i in range(new - 1):  # which tokens makes no difference
            model.eval([10 + i])
        rate = (new - 1) / (time.perf_counter() - begun)
        print(json.dumps({"load": load, "first": first, "rate": rate}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
