"""What all steps of the lab need with their settings."""

from phicli.config.steps import DEFAULT_RANK, EvaluateConfig, FinetuneConfig, QuantizeConfig
from phicli.resources.estimates import (
    Estimate,
    after_quantizing,
    estimate_chat,
    estimate_evaluate,
    estimate_finetune,
    estimate_optimize,
    estimate_quantize,
)
from phicli.resources.sizes import ModelSize


def step_estimates(size: ModelSize, device: str, quantize: QuantizeConfig, finetune: FinetuneConfig,
                   evaluate: EvaluateConfig) -> dict[str, Estimate]:
    """Step -> what it needs. size: of the original model; device: "cuda" or "cpu", which computes."""
    quantized = after_quantizing(size)
    return {
        "quantize": estimate_quantize(size, device, quantize.samples, quantize.seq_len, quantize.distill),
        "finetune": estimate_finetune(quantized, device, finetune.lora_r or DEFAULT_RANK, finetune.batch_size),
        "optimize": estimate_optimize(quantized, device),
        "evaluate": estimate_evaluate(size, device, evaluate.seq_len),
        "chat": estimate_chat(size, device),
    }
