"""What one fuzz test may take of memory."""

import resource

import pytest
from fuzzing import INPUTS

MEMORY = (600 << 20) + INPUTS * (1 << 18)  # bytes added to the process's peak; the second part is hypothesis's own


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"{grown >> 20} MB more at the peak"
