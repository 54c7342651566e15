"""Which tokens and which rows are trained on."""

from itertools import islice

import pytest

from phicli.dataset.contents import RowParser
from phicli.errors import BadInput
from phicli.text import TextCodec
from phicli.training.rows import batches
from phicli.training.rows import prepare_rows as prepare_encoded

OPTIONS = {"seq_len": 64, "mask_prompt": True, "eval_split": 0.0, "seed": 0}


@pytest.fixture(scope="module")
def codec(tiny):
    return TextCodec(tiny)


def prepare_rows(table, codec, **options):
    return prepare_encoded([codec.encode_conversation(RowParser().read(row).content) for row in table], **options)


def rows(n=10, **fields):
    return [{"prompt": f"Where is town {i}?", "response": f"It is {i} km away.", **fields} for i in range(n)]


def test_only_the_response_and_its_end_count(codec):
    (row,) = prepare_rows(rows(1), codec, **OPTIONS).train
    assert codec.decode([row.ids[at] for at in row.targets]).strip() == "It is 0 km away."
    assert row.ids[row.targets[-1]] == codec.special["<|end|>"][0]
    (whole,) = prepare_rows(rows(1), codec, **{**OPTIONS, "mask_prompt": False}).train
    assert (whole.ids, whole.targets) == (row.ids, list(range(1, len(row.ids))))


def test_long_rows_are_cut_and_those_with_no_response_left_go(codec):
    mixed = rows(3) + rows(2, response="far " * 200) + rows(4, prompt="where " * 200)
    found = prepare_rows(mixed, codec, **OPTIONS)
    assert (len(found.train), found.cut, found.dropped) == (5, 6, 4)
    assert max(len(row.ids) for row in found.train) == 64
    with pytest.raises(BadInput, match="no row has a token to learn within 64 tokens"):
        prepare_rows(rows(3, prompt="where " * 200), codec, **OPTIONS)


def test_held_out_rows_are_the_seeds_choice_and_never_trained_on(codec):
    def split(seed, share):
        found = prepare_rows(rows(20), codec, **{**OPTIONS, "eval_split": share, "seed": seed})
        return [tuple(r.ids) for r in found.train], [tuple(r.ids) for r in found.held_out]

    train, held = split(0, 0.2)
    assert (len(train), len(held), set(train) & set(held)) == (16, 4, set())
    assert split(0, 0.2) == (train, held)
    assert split(1, 0.2)[1] != held
    assert len(split(0, 0.001)[1]) == 1
    with pytest.raises(BadInput, match="none left to train on"):
        prepare_rows(rows(1), codec, **{**OPTIONS, "eval_split": 0.5})


def test_batches_take_rows_equally_often_and_keep_like_lengths_together():
    lengths = [(7 * i) % 100 for i in range(160)]
    first = list(islice(batches(lengths, 8, 3), 80))  # five pools, four epochs
    assert first == list(islice(batches(lengths, 8, 3), 80)) != list(islice(batches(lengths, 8, 4), 80))
    assert sorted(row for batch in first for row in batch) == sorted(4 * list(range(160)))
    spread = [max(lengths[r] for r in batch) - min(lengths[r] for r in batch) for batch in first]
    assert sum(spread) / len(spread) < 15  # 78 for batches of rows sampled at random
    assert [len(b) for b in islice(batches([1, 2, 3], 8, 0), 5)] == [8] * 5  # fewer rows than a batch
