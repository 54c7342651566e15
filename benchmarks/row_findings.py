"""What looking at rows costs in CPU time: damage in texts, near duplicates, languages, overlap of two files.

    python benchmarks/row_findings.py          # texts of 400 characters, made of data/data_sample_travel.jsonl
"""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

from phicli.dataset.contents import RowParser
from phicli.dataset.languages import Languages
from phicli.dataset.near_duplicates import NearDuplicates
from phicli.dataset.overlap import overlap
from phicli.dataset.suspicious import is_cut_off, suspicions
from phicli.dataset.text_repair import text_findings

ROWS, CHARACTERS, BATCH = 100_000, 400, 2000
DATA = Path(__file__).parents[1] / "data" / "data_sample_travel.jsonl"


def main() -> None:
    answers = [json.loads(line)["response"] for line in DATA.read_text("utf-8").splitlines()]
    threes = itertools.islice(itertools.permutations(answers, 3), 0, None, 97)
    texts = [" ".join(three)[: CHARACTERS - 1] + "." for three in itertools.islice(threes, ROWS)]
    batches = [texts[at: at + BATCH] for at in range(0, ROWS, BATCH)]
    near, languages = NearDuplicates(), Languages()
    measure("text_findings", lambda: [list(text_findings(text)) for text in texts])
    measure("suspicions", lambda: [list(suspicions(batch)) for batch in batches])
    measure("is_cut_off", lambda: [is_cut_off(text) for text in texts])
    measure("NearDuplicates.add", lambda: [near.add(batch, range(len(batch))) for batch in batches])
    measure("NearDuplicates.pairs", near.pairs)
    measure("Languages.add", lambda: [languages.add(batch, range(len(batch))) for batch in batches])
    rows = [[RowParser().read({"text": text}) for text in batch] for batch in batches]
    measure("overlap", lambda: overlap(rows, rows[:2]))


def measure(name: str, work: Callable[[], object]) -> None:
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    print(f"{name:22}{seconds / ROWS * 1e6:8.2f} µs a row {ROWS / seconds:12,.0f} rows a CPU second")


if __name__ == "__main__":
    main()
