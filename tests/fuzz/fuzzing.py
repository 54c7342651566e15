"""What the fuzz tests share: inputs that are nearly right, and what may come of them.

FUZZ in the environment is the number of inputs of each test: `make fuzz` takes thousands, new ones each time; without
it there are a few, always the same.
"""

import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phicli.errors import BadInput, Missing, UsageError

EXPECTED = (BadInput, UsageError, Missing)  # what a person may be told; anything else is a fault
STRANGE = ["<|end|>", "<|user|>", "\x00", "\ud800", "\ue000", "\u202e", "﻿", "\r", "\n", "\x1b[2J", "{", "}", "1e999",
           "-1", "9" * 40, "NaN", "null", "[[[[", '"', "\\u0000", "../../etc/passwd", "%s", "日本"]

text = st.one_of(st.text(max_size=40), st.sampled_from(STRANGE), st.lists(st.sampled_from(STRANGE), max_size=4).map(
    "".join))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
values = st.recursive(scalars, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)), max_leaves=12)

INPUTS = int(os.environ.get("FUZZ", "60"))


def fuzzed(**strategies):
    """hypothesis's `given`; an input that takes over 5 s counts as a hang."""
    many = settings(max_examples=INPUTS, deadline=5000, derandomize="FUZZ" not in os.environ, database=None,
                    print_blob=True, suppress_health_check=list(HealthCheck))
    return lambda test: many(given(**strategies)(test))


@st.composite
def mutated(draw, seed: bytes) -> bytes:
    """The seed with bytes changed, pieces cut out, doubled or put in, or its end cut off."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 1, 2, 8, 64])))
        with_ = draw(st.one_of(st.binary(max_size=8), st.sampled_from(STRANGE).map(
            lambda s: s.encode("utf-8", "surrogatepass")), st.just(bytes(data[at:end]) * 2)))
        data[at:end] = with_
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@st.composite
def changed(draw, document: dict) -> dict:
    """The JSON document with some of its values, at any depth, replaced, removed or added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        here = document
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], (dict, list)) and here[key] and draw(st.booleans()):
                here = here[key]
                continue
            if draw(st.integers(0, 5)) == 0:
                del here[key]
            else:
                here[key] = draw(values)
            break
        if isinstance(here, dict) and draw(st.integers(0, 4)) == 0:
            here[draw(text)] = draw(values)
    return document


def to_json(document) -> bytes:
    """Bytes of JSON, lone surrogates as escapes."""
    return json.dumps(document).encode()
