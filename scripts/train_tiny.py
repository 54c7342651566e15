"""Makes the built-in tiny model: writes its corpus, trains its tokenizer and its weights, saves the folder.

    python scripts/train_tiny.py --out phicli/hub/models/tiny --steps 6000 --batch 128

A GPU is used where there is one. The same seed gives the same corpus and the same tokenizer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from tiny_corpus import build_corpus, vocabulary_texts
from tiny_corpus.tokenizer import STOP_TOKENS, make_tokenizer, save_tokenizer
from tiny_corpus.written import written_texts
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

VOCABULARY, LENGTH, POSITIONS = 4096, 512, 2048
DROPOUT = 0.1  # in training only: the written rows are seen some 500 times
WRITTEN_REPEATS = 60  # times that the written rows stand in the corpus
QUESTIONS = [
    "Hello!",
    "Who are you?",
    "What is the capital of Portugal?",
    "Tell me a short story.",
    "What should I see in Venice?",
    "What is 4 plus 5?",
    "How do I get around in Tokyo?",
]


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """The documents in rows of 512 tokens; each row begins with a document, and its last one is cut."""
    rows, row, end = [], [], tokenizer.eos_token_id
    for start in range(0, len(texts), 20000):
        for encoding in tokenizer.backend_tokenizer.encode_batch(texts[start : start + 20000]):
            row += [*encoding.ids, end]
            if len(row) >= LENGTH:
                rows.append(np.array(row[:LENGTH], dtype=np.int16))
                row = []
    return torch.from_numpy(np.stack(rows))


def make_model(tokenizer: PreTrainedTokenizerFast) -> Phi3ForCausalLM:
    """The untrained model; every linear layer's input is a multiple of 128."""
    end_of_text = tokenizer.eos_token_id
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        original_max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        sliding_window=None,
        use_cache=True,
        attn_implementation="sdpa",
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        rope_theta=10000.0,
    )
    return Phi3ForCausalLM(config)


def loss_of(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of the rows."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY).float(), rows[:, 1:].reshape(-1))


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, rows: torch.Tensor, batch: int) -> float:
    """Mean loss of the held-out rows, in whole batches."""
    parts = [rows[i : i + batch] for i in range(0, len(rows) - batch + 1, batch)]
    return sum(loss_of(model, part.long()).item() for part in parts) / len(parts)


def rate(step: int, steps: int, peak: float) -> float:
    """Warm-up, then a cosine down to a hundredth of the peak."""
    warm = min(200, steps // 10 + 1)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def answer(model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """The greedy answer to one question."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def save(model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict, folder: Path) -> None:
    """Writes the model's folder; the configuration names the rope base in the older form too."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    for target, content in ((path, config), (folder / "training.json", record)):
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Runs the whole of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("phicli/hub/models/tiny"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=1_000_000, help="documents in the corpus")
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--compile", action="store_true", help="compile the training step")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.time()

    texts = build_corpus(options.documents, options.seed)
    random.Random(options.seed).shuffle(texts)
    sample = texts[:40_000] + vocabulary_texts() + written_texts(30, options.seed)
    tokenizer = make_tokenizer(sample, VOCABULARY, POSITIONS)
    held = max(len(texts) // 50, 200)
    held_rows = pack(tokenizer, texts[:held])[: options.batch * 8].to(device)
    training = texts[held:] + written_texts(WRITTEN_REPEATS, options.seed)
    random.Random(options.seed).shuffle(training)
    rows = pack(tokenizer, training).to(device)
    held_batch = min(options.batch, len(held_rows))
    print(f"{len(texts)} documents, {rows.numel()} tokens, {time.time() - started:.0f} s", flush=True)

    model = make_model(tokenizer).to(device).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95), fused=device == "cuda")
    runner = torch.compile(model) if options.compile else model
    train_started, losses = time.time(), []
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(options.steps):
        if len(order) < options.batch:
            order = torch.randperm(len(rows), generator=generator)
        chosen, order = order[: options.batch], order[options.batch :]
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps, options.rate)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(runner, rows[chosen.to(device)].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step % 500 == 499 or step + 1 == options.steps:
            model.eval()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                held_loss = held_out_loss(runner, held_rows, held_batch)
            model.train()
            recent = torch.stack(losses[-100:]).mean().item()
            spent = time.time() - train_started
            print(f"step {step + 1}: train {recent:.4f}, held out {held_loss:.4f}, {spent:.0f} s", flush=True)

    model = model.to(torch.bfloat16).eval()
    model.config.resid_pdrop = model.config.embd_pdrop = 0.0
    record = {
        "seed": options.seed,
        "steps": options.steps,
        "batch": options.batch,
        "tokens_per_row": LENGTH,
        "tokens_seen": options.steps * options.batch * LENGTH,
        "peak_learning_rate": options.rate,
        "train_loss": round(recent, 4),
        "held_out_loss": round(held_loss, 4),
        "corpus_documents": len(texts),
        "corpus_characters": sum(map(len, texts)),
        "corpus_tokens": rows.numel(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "training_seconds": round(spent, 1),
        "date": datetime.date.today().isoformat(),
    }
    save(model, tokenizer, record, options.out)
    for question in QUESTIONS:
        print(f"> {question}\n  {answer(model, tokenizer, question)}", flush=True)


if __name__ == "__main__":
    main()
