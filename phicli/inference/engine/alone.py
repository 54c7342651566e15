"""Rows that do not share their runs, each a sequence of onnxruntime-genai: for models that `Batch` cannot run."""

from collections.abc import Sequence

import numpy as np

from phicli.inference.engine.row import Row, Scores
from phicli.inference.generator import PREFILL_CHUNK
from phicli.inference.session import Session


class RowsAlone:
    """What `Rows` asks, at the speed of one row."""

    apart = False  # genai holds Python's lock while it runs

    def __init__(self, session: Session):
        self._session = session

    def place(self, row: Row) -> None:
        row.place = self._session.generator(row.most, row.request.adapter)
        border = self._session.rope_border
        if border is not None and row.prompt_tokens > border:
            row.place.expect_long()

    def prefill(self, row: Row) -> np.ndarray:
        return self._run(row, row.tokens[row.ran : row.ran + PREFILL_CHUNK])

    def step(self, rows: Sequence[Row]) -> Sequence[Scores]:
        return [self._run(row, row.tokens[-1:]) for row in rows]

    def leave(self, row: Row) -> None:
        if row.place is not None:
            row.place.close()

    def close(self) -> None:
        self._session.close()

    def _run(self, row: Row, tokens: Sequence[int]) -> np.ndarray:
        row.place.append_tokens(tokens)
        row.ran += len(tokens)
        return np.asarray(row.place.logits()[-1], np.float32)
