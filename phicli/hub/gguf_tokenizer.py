"""The tokenizer and chat template in a GGUF file, converted by transformers.

What transformers leaves out (5.23) is put right: how SmolLM splits digits, that Qwen brings characters into one form,
that Llama 3 and Mistral Nemo take a known word whole.
"""

import struct
from pathlib import Path

from phicli.artifacts.gguf import GgufHeader
from phicli.errors import BadInput
from phicli.hub.gguf_config import ORIGINAL

MODELS = ("gpt2", "llama")  # of merged bytes, and SentencePiece's
# How text is split before merging: those that transformers knows and that the families of `gguf_config` have.
SPLITS = ("default", "gpt-2", "smollm", "llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3", "tekken", "dbrx",
          "gpt-4o", "qwen2", "deepseek-r1-qwen")
ONE_FORM = ("qwen2", "deepseek-r1-qwen")
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
COUNT_AT = 8  # where a GGUF file says how many tensors it has


def check_tokenizer(header: GgufHeader) -> None:
    """Raise BadInput for a tokenizer that would come out as another one."""
    model, split = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model not in MODELS or (model == "gpt2" and (split or "default") not in SPLITS):
        raise BadInput(f"its tokenizer ('{str(model)[:40]}', '{str(split)[:40]}') is not understood",
                       where=header.path, hint=ORIGINAL)


def save_tokenizer(header: GgufHeader, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template. Raises BadInput: transformers cannot."""
    from tokenizers import normalizers, pre_tokenizers
    from transformers import AutoTokenizer

    vocabulary = folder / "vocabulary.gguf"  # the file without its tensors
    data = header.vocabulary
    vocabulary.write_bytes(data[:COUNT_AT] + struct.pack("<Q", 0) + data[COUNT_AT + 8:])
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=vocabulary.name)
        backend, split = tokenizer.backend_tokenizer, header.metadata.get("tokenizer.ggml.pre")
        if split == "smollm":
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        if split in ONE_FORM:
            backend.normalizer = normalizers.NFC()
        if split in WHOLE_WORDS:
            backend.model.ignore_merges = True
        tokenizer.save_pretrained(folder)
    except Exception as e:
        raise BadInput(f"its tokenizer cannot be converted: {type(e).__name__}: {str(e)[:200]}", where=header.path,
                       hint=ORIGINAL) from None
    vocabulary.unlink()
