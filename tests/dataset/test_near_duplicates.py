"""Near duplicates against the exact Jaccard index, sampled rows, and rows that two files share."""

import random

import pytest

from phicli.dataset.contents import RowParser
from phicli.dataset.near_duplicates import NearDuplicates
from phicli.dataset.overlap import Overlap
from phicli.dataset.overlap import overlap as overlap_of_rows

WORDS = [f"w{i}" for i in range(3000)]


def rows(n, seed=0, words=60):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(n)]


def changed(text, at=-1):
    words = text.split()
    words[at] = "changed"
    return " ".join(words)


def overlap(train, held_out, **settings):
    """Of files given as batches of texts."""
    read = RowParser().read
    files = ([[read({"text": text}) for text in batch] for batch in batches] for batches in (train, held_out))
    return overlap_of_rows(*files, **settings)


def jaccard(a, b):
    a, b = ({tuple(w[i: i + 5]) for i in range(len(w) - 4)} for w in (a.split(), b.split()))
    return len(a & b) / len(a | b)


def pairs(texts, batch=100, **settings):
    near = NearDuplicates(**settings)
    for first in range(0, len(texts), batch):
        near.add(texts[first: first + batch], range(first + 1, first + 1 + len(texts[first: first + batch])))
    return near.pairs()


def test_rows_with_one_word_changed_are_found_and_no_others():
    texts = rows(1000)
    texts += [changed(text, at) for at, text in zip((0, 1, 30, 58, 59) * 40, texts[::5], strict=True)]
    found = pairs(texts)
    assert set(found) <= {(1001 + i, 1 + 5 * i) for i in range(200)}
    assert len(found) >= 0.97 * 200  # Jaccard index 0.84 and more
    assert found == pairs(texts, batch=7) == sorted(found)


def test_rows_of_one_pattern_that_differ_are_none():
    """40 words that all rows have, 20 that each has for itself: Jaccard index 0.43."""
    pattern = rows(1, seed=1, words=40)[0]
    texts = [f"{pattern} {text}" for text in rows(1500, words=20)]
    assert jaccard(texts[0], texts[1]) < 0.5
    texts += [changed(text) for text in texts[:100]]
    found = pairs(texts)
    assert len(found) >= 97 and all(jaccard(texts[a - 1], texts[b - 1]) >= 0.8 for a, b in found)


@pytest.mark.parametrize(("one", "other", "near"), [
    ("Take the tram, then walk.", "take the TRAM then walk!", True),
    ("Yes.", "No.", False), ("", "…", True),
    ("東京は日本の首都で、とても大きな町です。人口は千四百万人ぐらいで、電車がたくさんあります。",
     "東京は日本の首都で、とても大きな町です。人口は千四百万人ぐらいで、電車がたくさんあるよ。", True),
    ("東京は日本の首都で、とても大きな町です。", "京都は古い町で、お寺がたくさんあります。", False),
    ("half \ud83d of a character", "half \ud83d of a character!", True),
])
def test_words_and_characters_count_and_case_and_punctuation_do_not(one, other, near):
    assert pairs([one, other]) == ([(2, 1)] if near else [])


def test_of_many_rows_a_sample_is_compared():
    texts = rows(400, words=20) + ["the very same five words and more of them " + str(i) for i in range(2000)]
    near = NearDuplicates(max_rows=300, seed=1)
    for first in range(0, len(texts), 50):
        near.add(texts[first: first + 50], range(first, first + 50))
    assert (near.rows, near.compared) == (2400, 300)
    kept = near.lines.tolist()
    assert len(set(kept)) == 300 and 20 < sum(line < 400 for line in kept) < 90  # about 50 of 300
    one, again, other = (pairs(texts, max_rows=300, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_no_rows():
    assert pairs([]) == []
    assert overlap([], []) == overlap([["a"]], []) == Overlap(0, 0, 0, 0, 0)
    assert overlap([], [["a"]]) == Overlap(1, 0, 0, 1, 0)


def test_overlap_of_two_files():
    train, held = rows(500), rows(50, seed=1)
    held[10:20] = train[100:110]  # the same
    held[15] = f" {held[15]}\n"
    held[20:25] = [changed(text) for text in train[200:205]]
    held.append(held[10])  # a duplicate counts as often as it is there
    batches = [train[:300], [], train[300:]]
    assert overlap(batches, [held[:12], held[12:]]) == Overlap(51, 11, 5, 51, 500)
    assert overlap([held], batches).exact == 10
    few = overlap(batches, [held], max_rows=20)
    assert (few.rows, few.exact, few.compared, few.train_compared) == (51, 11, 20, 20)
