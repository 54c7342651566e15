"""An engine as most tests of requests want it."""

import pytest

from phicli.inference.engine import Engine
from phicli.inference.engine.memory import CpuMemory


@pytest.fixture(scope="module", params=[False, True], ids=["at once", "told by a thread of its own"])
def engine(two_graphs, request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuMemory, "apart", request.param)  # as a GPU's is
        opened = Engine(two_graphs / "onnx-ao", max_batch=2, context=256, max_queue=3)
    with opened:
        yield opened
