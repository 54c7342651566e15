"""What a process holds of a base that several hold together. That they train as one: test_together."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from phicli.checkpoints.loading import load_base
from phicli.hardware.ranks import Ranks
from phicli.training.sharding import Shards, load_once


@pytest.fixture
def ranks():
    """The first of four, of which the others are not there: nothing is waited for, and nothing comes."""
    distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield Ranks(0, 4, sharded=True)
    distributed.destroy_process_group()


def test_a_process_holds_its_part_and_lets_go_of_what_it_gathers(awq, ranks):
    whole = {name: p.nbytes for name, p in load_base(awq, "cpu", torch.float32).state_dict().items() if p.dim() > 1}
    base = load_once(awq, torch.float32, ranks)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    shards = Shards(adapted, "cpu", ranks, tokens=100)
    frozen = [p for p in adapted.parameters() if not p.requires_grad]
    layers = sum(p.to_local().nbytes for p in frozen if isinstance(p, DTensor))
    ends = sum(matrix.mine.nbytes for matrix in shards.matrices.values())
    outside = sum(p.untyped_storage().nbytes() for p in frozen if not isinstance(p, DTensor))
    assert layers + ends + outside == pytest.approx(sum(whole.values()) / 4, rel=0.02)
    assert all(not isinstance(p, DTensor) for p in adapted.parameters() if p.requires_grad)
    matrix = shards.matrices[base.get_input_embeddings().weight]
    matrix.gather()
    assert matrix.parameter.untyped_storage().nbytes() == matrix.mine.nbytes * 4
    base.get_input_embeddings()(torch.tensor([[1, 2]]))
    assert matrix.parameter.untyped_storage().nbytes() < 100
