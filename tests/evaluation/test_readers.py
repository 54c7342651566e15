"""Which models `evaluate` holds in memory, and when."""

import numpy as np
import pytest

from phicli.errors import BadInput
from phicli.evaluation.readers import Readers
from phicli.evaluation.stages import Stage
from phicli.inference import session as sessions
from phicli.inference.session import Session
from phicli.text import Encoded

ROW = Encoded.counted_from([5, 6, 7, 8, 9], 2)


def test_adapters_of_a_model_share_a_session_and_one_model_is_open_at_a_time(two_graphs, tiny, monkeypatch):
    opened: list[str] = []
    held: list[Session] = []
    real, folder = sessions.open_graph, two_graphs / "onnx-ao"

    class Watched(Session):
        def __init__(self, *args, **kwargs):
            assert all(session.closed for session in held)
            super().__init__(*args, **kwargs)
            held.append(self)

    monkeypatch.setattr(sessions, "Session", Watched)
    monkeypatch.setattr(sessions, "open_graph", lambda settings, path, *more: (
        opened.append(path.name), real(settings, path, *more))[1])
    stages = [Stage(str(name), folder, name, onnx=True) for name in (None, "cooking", "travel")]
    found = []
    with Readers("cpu") as readers:
        for stage in (stages[0], Stage("original", tiny), *stages):
            with readers.open(stage) as read:
                assert stage.onnx or held[-1].closed
                found.append(read(ROW))
    assert opened == ["base.onnx", "base.onnx", "model.onnx"] and all(session.closed for session in held)
    np.testing.assert_array_equal(found[0], found[2])
    with Session(folder) as session:
        for name, logits in zip((None, "cooking", "travel"), found[2:], strict=True):
            np.testing.assert_allclose(logits, session.logits(ROW.ids, name)[1:-1], atol=1e-4)
    assert np.abs(found[3] - found[4]).max() > 0.01


def test_a_stage_that_fails_leaves_nothing_open(two_graphs, monkeypatch):
    stage = Stage("onnx", two_graphs / "onnx-ao", onnx=True)
    with pytest.raises(BadInput, match="more than the context"), Readers("cpu") as readers, readers.open(stage) as read:
        session = readers._session
        read(Encoded.counted_from([5] * 4000, 2))
    assert session is not None and session.closed
