"""What one fuzz test may take of memory."""

import resource

import pytest

MEMORY = 600 << 20  # bytes that a test may add to the peak of the process


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"{grown >> 20} MB more at the peak"
