"""Would packing rows with block-wise attention be faster than batches of rows of like length?

Prints the share of padding in tokens, and CPU seconds for a thousand tokens of rows, forward and backward: as finetune
draws batches, and with the same rows packed one behind the other, each attending to itself only.
"""

import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from phicli.checkpoints.loading import load_base
from phicli.config import FinetuneConfig
from phicli.dataset.encoding import RowEncoder
from phicli.dataset.table import Table
from phicli.hub.models import BUILT_IN
from phicli.text import Encoded
from phicli.training.batches import batches
from phicli.training.fitting import Fitting
from phicli.training.loss import make_batch
from phicli.training.rows import EncodedRows, prepare_rows

DATA = Path(__file__).parents[1] / "data" / "data_sample_travel.jsonl"
LIMIT, SIZE, STEPS = 1024, 8, 64


def mixed(seed: int) -> list[Encoded]:
    """Rows of very mixed length: lognormal around 150 tokens, from 7 to the limit."""
    draw = random.Random(seed)
    lengths = [min(LIMIT, int(draw.lognormvariate(5, 1.2)) + 5) for _ in range(2000)]
    return [Encoded.counted_from([draw.randrange(300, 3000) for _ in range(length)], length // 3) for length in lengths]


def packed(rows: list[Encoded]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, positions and labels of packs of at most LIMIT tokens, the longest rows first."""
    packs: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        fits = (pack for pack in packs if sum(len(one.ids) for one in pack) + len(row.ids) <= LIMIT)
        (next(fits, None) or packs.append([]) or packs[-1]).append(row)
    found = []
    for pack in packs:
        ids = torch.tensor([[i for row in pack for i in row.ids]])
        positions = torch.cat([torch.arange(len(row.ids)) for row in pack])[None]
        labels = torch.tensor([[i if counts and at else -100 for row in pack
                                for at, (i, counts) in enumerate(zip(row.ids, row.mask, strict=True))]])
        found.append((ids, positions, labels))
    return found


def measure(name: str, rows: list[Encoded]) -> None:
    base = load_base(BUILT_IN / "tiny", "cpu", torch.float32)
    model = get_peft_model(base, LoraConfig(r=16, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]))
    drawn = [batch.rows for batch in batches(prepare_rows(EncodedRows(rows), Fitting(LIMIT)), SIZE, 0, 0, STEPS)]
    real = sum(len(row.ids) for batch in drawn for row in batch)
    padded = sum(max(len(row.ids) for row in batch) * len(batch) for batch in drawn)
    begun = time.process_time()
    for batch in drawn:
        made = make_batch(batch)
        logits = model(input_ids=made.ids).logits.flatten(0, 1)[made.places]
        torch.nn.functional.cross_entropy(logits, made.labels).backward()
    between = time.process_time()
    for ids, positions, labels in packed([row for batch in drawn for row in batch]):
        logits = model(input_ids=ids, position_ids=positions).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, labels[0, 1:]).backward()
    seconds = {"like lengths": between - begun, "packed": time.process_time() - between}
    shown = ", ".join(f"{way} {1000 * spent / real:.3f} s" for way, spent in seconds.items())
    print(f"{name}: {real:,} tokens, padding {1 - real / padded:.1%}; a thousand tokens: {shown}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = FinetuneConfig("tiny", data=str(DATA))
    table, encoder = Table([DATA], settings), RowEncoder(BUILT_IN / "tiny", settings)
    measure("travel", [table.encode(number, encoder) for number in range(len(table))])
    measure("mixed", mixed(1))
