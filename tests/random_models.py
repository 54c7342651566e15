"""Small random models of the architectures that AWQ knows."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(  # noqa: C408
    vocab_size=96, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
EXTRA = {
    "phi3": {"original_max_position_embeddings": 128},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 32, "layer_types":
                    ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
    "olmo2": {},
}


def random_model(folder, model_type, key_value_heads=2, **more):
    torch.manual_seed(3)
    sizes = {**SIZES, "num_key_value_heads": key_value_heads, **EXTRA.get(model_type, {}), **more}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases that are not what they start as
                parameter.add_(torch.rand_like(parameter) * (0.5 if "norm" in name else 0.1))
    model.save_pretrained(folder)
    return model
