"""The whole lab on a small model of one family, and how near its ONNX model is to torch."""

from pathlib import Path

import numpy as np
import torch
from family_models import Family, make
from onnx_checkpoints import compare

from phicli import Conversation, Session, evaluate, finetune, optimize, quantize
from phicli.checkpoints.loading import load_base

ROWS = Path(__file__).parents[1] / "data" / "data_sample_travel.jsonl"
STEPS = 4  # tokens run one by one at the end of a long text
LAST = 80  # tokens of its end that are compared
QUICK = {"device": "cpu"}


def run_lab(family: Family, place: Path, tokenizer: Path) -> dict[str, float]:
    """KL in nats a token of ONNX from torch: `evaluate`'s on rows ("rows"), and with the trained adapter on random
    tokens up to a quarter ("near"), at the end ("far"), and at the end where tokens run one by one ("decoded"); of the
    model as `optimize` makes it by default, whose activations are int8, from torch ("default"), and of ours from
    onnxruntime's products and attention ("kernels").

    Asserts that each step did what it is for.
    """
    model, root = make(family, place / "model", tokenizer), place / "root"
    base = quantize(str(model), root=root, samples=4, seq_len=64, rounding="nearest", **QUICK).folder
    adapter = finetune(str(model), root=root, data=[str(ROWS)], name="a", lora_r=4, max_steps=2, batch_size=2,
                       learning_rate=0.02, seq_len=64, eval_split=0, keep="last", publish_anyway=True, **QUICK).folder
    onnx = optimize(str(model), root=root, activations="fp32", embeddings="float", **QUICK).folder
    found = evaluate(str(model), root=root, eval_data=str(ROWS), rows=2, **QUICK)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    kl = {"rows": max(stages[name]["kl_torch"] for name in ("onnx", "onnx + a"))}
    ids = np.random.default_rng(0).integers(10, 4000, family.beyond)
    rows = np.array([*range(10, len(ids) // 4, 3), *range(len(ids) - LAST, len(ids))])
    wanted, plain = _of_torch(base, adapter, ids, rows)
    with Session(onnx, "cpu") as session:
        found = _compare(session, wanted, ids, rows)
        assert compare(wanted[-1:], plain)[0] > 10 * max(found.values())  # the adapter matters
        kl |= found
        assert session.end_ids >= set(family.ends)
        conversation = Conversation(session, adapter="a", max_new_tokens=4)
        conversation.ask("Where is Rome?")
        again = conversation.ask("And Kyoto?")
        assert again.cached_tokens > 0 and again.answer_tokens > 0
    default = optimize(str(model), root=root, force=True, **QUICK).folder
    theirs, ours = (_logits(default, kernels, ids)[rows] for kernels in ("onnxruntime", "phicli"))
    return kl | {"default": compare(wanted, ours)[0], "kernels": compare(theirs, ours)[0]}


def _logits(folder: Path, kernels: str, ids: np.ndarray) -> np.ndarray:
    with Session(folder, "cpu", kernels) as session:
        return session.logits(ids, "a")


def _of_torch(base: Path, adapter: Path, ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of these tokens with the adapter, and of the last one without."""
    from peft import PeftModel

    torch_base = load_base(base, "cpu", torch.float32).eval()
    with torch.inference_mode():
        plain = torch_base(torch.from_numpy(ids)[None], logits_to_keep=1).logits[0, -1].numpy()
        wanted = PeftModel.from_pretrained(torch_base, str(adapter)).eval()(
            torch.from_numpy(ids)[None]).logits[0].numpy()[rows]
    return wanted, plain[None]


def _compare(session: Session, wanted: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    found = session.logits(ids, "a")[rows]
    generator = session.generator(len(ids), "a")
    generator.append_tokens(ids[:-STEPS])
    stepped = []
    for token in ids[-STEPS:]:
        generator.append_tokens([token])
        stepped.append(generator.logits()[-1])
    return {"near": compare(wanted[:-LAST], found[:-LAST])[0], "far": compare(wanted[-LAST:], found[-LAST:])[0],
            "decoded": compare(wanted[-STEPS:], np.array(stepped))[0]}
