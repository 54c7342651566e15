"""The faults of scripts/torture.py, with a few kills instead of fifty."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import damages
import kills
import surroundings
from bench import Bench

FEW = 2  # kills
FAULTS = (
    kills.killed, kills.interrupted, kills.two_at_once, kills.interrupted_while_waiting, kills.four_chats,
    damages.damaged_stages, damages.damaged_inputs, damages.changed_while_running, damages.future,
    surroundings.no_space, surroundings.file_limit, surroundings.read_only, surroundings.odd_names,
    surroundings.plain_terminal, surroundings.no_home, surroundings.reader_gone,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("faults") / "bench", thorough=False)
    yield bench
    bench.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault(bench, fault):
    try:
        assert fault(bench, FEW) > 0
    except surroundings.Impossible as e:
        pytest.skip(str(e))
