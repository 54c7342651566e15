"""Writes docs/models.md: each family through the whole lab, as tests/export/test_families.py takes it there."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "models.md"
sys.path.insert(0, str(REPOSITORY / "tests"))
COLUMNS = ("family", "`model_type`", "what is special", "KL on rows", "length", "KL there", "KL one by one",
           "by default")
BEFORE = """# Models

Made by `python scripts/models_page.py` ({date}, two CPU cores): a small random model with the flags of each family's
real config.json goes through `quantize`, `finetune`, `optimize`, `evaluate` and `chat`. KL is that of the ONNX model
from the same int4 weights in torch, in nats a token: with and without the adapter on rows of the lab, the larger;
with it over the last tokens of a text of this length, past the window or LongRoPE's boundary where there is one; and
the same where tokens run one by one, as in chat. Nearly all of it comes from the output projection in 8 bits;
embeddings and activations are in fp32, since int8 ones would hide the rest. The test fails at 1e-4, and where these two
are twice what the same text has further up. A window that is one token too long gives ten times as much. The last
column is the model as `optimize` makes it by default, with activations in int8; there our products and attention give
what onnxruntime's give, up to the KL in brackets. Random weights say nothing about how well a model answers.

"""
BETWEEN = """
## What a model comes as
`--model` takes a folder in Hugging Face's form, a hub id, `azureml://…`, and

- **a GGUF file**, `PATH.gguf` or of the hub `owner/name/FILE.gguf` (`pip install 'phicli[gguf]'`), of the
  architectures `llama` (Mistral and SmolLM2 too), `qwen2`, `qwen3` and `phi3`. It is unpacked once, a few megabytes at
  a time, to a folder of the user's cache (`~/.cache/phicli/gguf`), named by the file's hash: weights in 16 bits,
  settings, tokenizer and chat template from its metadata. LongRoPE's factors, Llama 3's scaling, YaRN and windows are
  taken over; a setting, a tensor or a tokenizer that is not understood is refused, since a model without it would
  answer, and worse. A file of the hub is judged by its header, the first megabytes, before the rest is fetched. What
  its quantization has lost stays lost. Of a model in several files the merged one is needed
  (`llama-gguf-split --merge`);
- **`tokenizer.model` without `tokenizer.json`** (`pip install 'phicli[sentencepiece]'`): transformers converts it,
  once, in `~/.cache/phicli/converted`; the model's folder stays as it is.

Pickled weights (`.bin`, `.pt`) are refused with the command that converts them. With `HF_HUB_OFFLINE=1` the hub's cache
is all there is, and the message has the command that fills it.

## Refused
By the first command, before weights are fetched, with exit code 3:

"""
AFTER = """
Other families are refused as GPT-2 is. Windows stand in the attention of the graph, for every program that runs it;
the cache of a layer with a window is as long as any other's, so that a conversation can go back in it.
"""


def page() -> str:
    from family_lab import run_lab
    from family_models import FAMILIES, REFUSED, write_refused

    from phicli.errors import BadInput
    from phicli.hub.models import BUILT_IN, judge_config

    families, refused = [COLUMNS], [("model", "because")]
    with tempfile.TemporaryDirectory(prefix="phicli-") as scratch:
        for name in REFUSED:
            try:
                judge_config(write_refused(name, Path(scratch) / "refused" / name))
            except BadInput as e:
                refused.append((name, e.message))
        for family in FAMILIES:
            print(family.name, file=sys.stderr)
            kl = {name: f"{value:.0e}" for name, value in run_lab(family, Path(scratch) / family.name,
                                                                  BUILT_IN / "tiny").items()}
            families.append((family.name, f"`{family.kind}`", family.what, kl["rows"], f"{family.beyond:,}", kl["far"],
                             kl["decoded"], f"{kl['default']} ({kl['kernels']})"))
    return "".join([BEFORE.format(date=time.strftime("%Y-%m-%d")), _table(families), BETWEEN, _table(refused), AFTER])


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
