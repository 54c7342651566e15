"""What a CUDA graph takes as given, tried without a GPU: recorded positions give the same loss, nothing read back."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, masking_utils

from phicli.errors import Missing
from phicli.text import Encoded
from phicli.training.graphs import _Positions
from phicli.training.loss import RowLoss, make_even_batch
from phicli.workflow.patching import replaced

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "pad_token_id": 0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "longrope": Phi3Config(**SMALL, max_position_embeddings=64, original_max_position_embeddings=32,
                           rope_parameters={**LONG, "original_max_position_embeddings": 32}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_replayed_positions_give_the_same_loss(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    loss, positions = RowLoss(model), _Positions(model)
    first, second = (make_even_batch([Encoded.counted_from([(7 * i + j + k) % 60 + 2 for j in range(20)], 5)
                                      for i in range(3)]) for k in (0, 3))
    with positions.recorded():
        loss(first)
    wanted = float(loss(second))
    assert positions.outputs
    called: list[object] = []
    with replaced(torch.Tensor, "__bool__", lambda self: called.append(self)), positions.replayed():
        found = loss(second)
    assert float(found) == wanted and not called


def test_a_library_without_the_name_is_said_and_what_was_replaced_comes_back():
    before = masking_utils.find_packed_sequence_indices
    with pytest.raises(Missing, match="has no gone"), replaced(masking_utils, "gone", None):
        pass
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    with _Positions(model).replayed():
        assert masking_utils.find_packed_sequence_indices is not before
    assert masking_utils.find_packed_sequence_indices is before
    assert not any("forward" in vars(module) for module in model.modules())
