"""Whether a model that was fine-tuned by default settings ends its answers, and how likely held-out answers are.

    python benchmarks/stopping.py MODEL ROOT [--steps 60] [--questions 20]

Does the lab on a model's folder, in ROOT, with the travel rows: what is up to date there is not made again. Then asks
the first held-out questions, greedily, and counts the answers that end by themselves within 256 tokens.
"""

import argparse
import json
from pathlib import Path

from phicli import Conversation, Session, evaluate, finetune, optimize, quantize

DATA = Path(__file__).parents[1] / "data"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("root")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--questions", type=int, default=20)
    args = parser.parse_args()
    where = {"root": args.root}
    quantize(args.model, **where)
    tuned = finetune(args.model, data=str(DATA / "data_sample_travel.jsonl"), max_steps=args.steps, **where)
    quality = tuned.manifest.quality
    print(f"held-out loss {quality['held_out_loss_before']:.3f} -> {quality['held_out_loss_after']:.3f}", flush=True)
    folder = optimize(args.model, **where).folder
    rows = [json.loads(line) for line in (DATA / "data_eval_travel.jsonl").read_text(encoding="utf-8").splitlines()]
    ended = []
    with Session(folder) as session:
        for row in rows[: args.questions]:
            answer = Conversation(session, adapter="travel", max_new_tokens=256).ask(row["prompt"])
            ended.append(answer.finish_reason == "stop")
            print(f"{answer.finish_reason:10} {answer.answer_tokens:4} tokens  {row['prompt'][:60]}", flush=True)
    print(f"ended by themselves: {sum(ended)} of {len(ended)}", flush=True)
    document = evaluate(args.model, eval_data=str(DATA / "data_eval_travel.jsonl"), **where)
    for stage in document["stages"]:
        if stage["perplexity"] is not None:
            print(f"{stage['stage']:16} perplexity {stage['perplexity']:.2f}, {stage['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
