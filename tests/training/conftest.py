"""Quantized bases made once for all tests of adapters."""

from pathlib import Path

import pytest
from bases import quantized


@pytest.fixture(scope="session")
def awq(tiny, tmp_path_factory) -> Path:
    """An AWQ checkpoint of the built-in model. To be left as it is."""
    return quantized(tiny, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rtn(tiny, tmp_path_factory) -> Path:
    """Olive's round-to-nearest of it, as `phicli quantize --algorithm rtn` writes it. To be left as it is."""
    return quantized(tiny, tmp_path_factory.mktemp("base"), algorithm="rtn")
