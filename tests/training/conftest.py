"""Quantized bases made once for all tests of adapters."""

from pathlib import Path

import pytest
import torch
from bases import quantized


@pytest.fixture(scope="session")
def awq(tiny, tmp_path_factory) -> Path:
    """An AWQ checkpoint of the built-in model. To be left as it is."""
    return quantized(tiny, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rtn(tiny, tmp_path_factory) -> Path:
    """Olive's round-to-nearest of it, as `phicli quantize --algorithm rtn` writes it. To be left as it is."""
    return quantized(tiny, tmp_path_factory.mktemp("base"), algorithm="rtn")


@pytest.fixture
def fresh(tiny):
    """fresh() -> the built-in model with a small adapter on it, each time the same."""
    from peft import LoraConfig, get_peft_model

    from phicli.checkpoints.loading import load_base

    def adapted():
        base = load_base(tiny, "cpu", torch.float32)
        torch.manual_seed(0)
        return get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules=["down_proj"]))

    return adapted
