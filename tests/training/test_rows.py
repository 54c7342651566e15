"""Which rows are held out, and what becomes of long ones."""

import json

import numpy as np
import pytest

from phicli.config import FinetuneConfig
from phicli.dataset.encoding import RowEncoder
from phicli.dataset.sources import Source
from phicli.dataset.table import Table
from phicli.errors import BadInput
from phicli.text import Encoded
from phicli.training.fitting import Fitting
from phicli.training.rows import HELD_OUT_MOST, EncodedRows, TableRows, choose_rows, prepare_rows


@pytest.fixture
def asking(tiny, tmp_path):
    """asking(prompts) -> rows of these prompts, each with another answer."""
    encoder = RowEncoder(tiny, FinetuneConfig("tiny"))

    def made(prompts) -> TableRows:
        rows = [{"prompt": prompt, "response": f"It is {i} km away."} for i, prompt in enumerate(prompts)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TableRows(Table([Source(tmp_path / "rows.jsonl")], FinetuneConfig("tiny")), encoder)

    return made


def prompts_of(source, numbers) -> set[str]:
    return {source.table.content(int(i)).messages[0]["content"] for i in numbers}


def test_only_the_response_and_its_end_count(asking):
    source = asking(["Where is it?"])
    (row,) = Fitting(64)(source.encode(0)).pieces
    codec = source.encoder.codec
    assert codec.decode([row.ids[at] for at in row.targets]).strip() == "It is 0 km away."
    assert row.ids[row.targets[-1]] == codec.special["<|end|>"][0]
    (whole,) = Fitting(64, mask_prompt=False)(source.encode(0)).pieces
    assert (whole.ids, whole.targets) == (row.ids, list(range(1, len(row.ids))))


def test_a_cut_row_keeps_the_token_that_ends_its_last_turn():
    row = Encoded.counted_from(range(100, 130), 10)
    (cut,), long = Fitting(16)(row)
    assert long and cut.ids == [*range(100, 115), 129] and cut.targets == list(range(10, 16))
    turns = Encoded(list(range(20)), [4 <= at < 6 or 15 <= at < 18 for at in range(20)])  # what follows counts not
    assert Fitting(9)(turns).pieces == [Encoded([*range(8), 17], [*turns.mask[:8], True])]
    assert Fitting(9)(Encoded.counted_from(range(30), 8)) == ([], True)  # an end that answers nothing
    assert Fitting(30)(row) == ([row], False)


def test_dropped_and_split_rows():
    row = Encoded.counted_from(range(100, 130), 12)
    assert Fitting(16, "drop")(row) == ([], True)
    assert Fitting(30, "drop")(row) == ([row], False)
    for length in range(8, 31):
        pieces, _ = Fitting(length, "split")(row)
        assert max(len(piece.ids) for piece in pieces) <= length
        learnt = [piece.ids[at] for piece in pieces for at in piece.targets]
        assert learnt == [row.ids[at] for at in row.targets]  # each once, whatever the length
        assert all(piece.ids == row.ids[piece.ids[0] - 100 :][: len(piece.ids)] for piece in pieces)
    assert [piece.ids[0] for piece in Fitting(8, "split")(row).pieces] == [107, 114, 121, 128]  # not the prompt's piece


def test_rows_that_ask_the_same_are_on_one_side(asking):
    source = asking([f"Where is town {i % 30}?" for i in range(120)])
    found = prepare_rows(source, Fitting(64), eval_split=0.2)
    assert len(found.train) + len(found.held_out) == 120
    assert len(found.held_out) == 24  # six groups of four
    held = set(range(120)) - set(found.train.tolist())
    assert not prompts_of(source, held) & prompts_of(source, found.train)
    assert {tuple(row.ids) for row in found.held_out} == {tuple(source.encode(i).ids) for i in held}


def test_the_choice_is_the_seeds_and_independent_of_the_order_of_rows(asking):
    prompts = [f"Where is town {i // 3}?" for i in range(60)]

    def chosen(prompts, seed, share=0.2):
        source = asking(prompts)
        train = prepare_rows(source, Fitting(64), eval_split=share, seed=seed).train
        return frozenset(prompts) - prompts_of(source, train)

    assert len(chosen(prompts, 0)) == 4
    assert chosen(prompts[::-1], 0) == chosen(prompts, 0)
    assert len({chosen(prompts, seed) for seed in range(5)}) > 3
    assert chosen(prompts, 0) < chosen([*prompts, "Where else?"], 0, 0.5)  # a larger share holds the smaller one
    assert len(chosen(prompts, 0, 0.001)) == 1


@pytest.mark.parametrize(("sizes", "wanted", "rows"), [
    ([1] * 50, 5, 5), ([3] * 50, 5, 6), ([40, 1, 1, 1, 1], 4, 4), ([40, 30, 20], 4, 20), ([90, 2, 2, 2], 5, 4),
    ([1] * 5000, 2500, HELD_OUT_MOST),
])
def test_whole_groups_come_as_near_to_the_share_as_they_can(sizes, wanted, rows):
    keys = np.repeat(np.arange(len(sizes), dtype=np.uint64) * np.uint64(977), sizes)
    for seed in range(4):
        found = choose_rows(keys, wanted, seed)
        assert abs(len(found) - rows) <= 1 and len(set(found.tolist())) == len(found)
        assert not set(keys[found].tolist()) & set(np.delete(keys, found).tolist())


def test_held_out_rows_from_elsewhere(asking):
    source, other = asking(["a?", "b?"]), asking([f"{i}?" for i in range(HELD_OUT_MOST + 9)])
    found = prepare_rows(source, Fitting(64), eval_split=0.5, eval_source=other)
    assert found.train.tolist() == [0, 1]
    assert len(found.held_out) == HELD_OUT_MOST


def test_nothing_left_to_train_on_or_to_measure(asking):
    with pytest.raises(BadInput, match="none left to train on"):
        prepare_rows(asking(["same"] * 7), Fitting(64), eval_split=0.1)
    assert len(prepare_rows(asking(["same"] * 7), Fitting(64)).train) == 7
    with pytest.raises(BadInput, match="has a token to learn within 8 tokens"):
        prepare_rows(asking(["where " * 9 + str(i) for i in range(9)]), Fitting(8), eval_split=0.1)


def test_token_ids_ask_what_stands_before_the_answer():
    rows = [Encoded.counted_from(ids, 2) for ids in ([1, 2, 3], [1, 2, 4], [1, 3, 3])]
    same, also, other = EncodedRows(rows).keys()
    assert same == also != other
