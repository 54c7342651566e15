"""What all steps of the lab need with their settings."""

from collections.abc import Callable
from typing import Any

from phicli.config.steps import DEFAULT_RANK, EvaluateConfig, FinetuneConfig, OptimizeConfig, QuantizeConfig
from phicli.resources.estimates import (
    ROW_TOKENS,
    Estimate,
    after_quantizing,
    estimate_chat,
    estimate_evaluate,
    estimate_finetune,
    estimate_optimize,
    estimate_quantize,
)
from phicli.resources.sizes import ModelSize


def step_estimates(size: ModelSize, device: str, settings_of: Callable[[Any], Any], row_tokens: int = ROW_TOKENS,
                   base: ModelSize | None = None) -> dict[str, Estimate]:
    """Step -> what it needs.

    Args:
        size: of the original model. device: "cuda" or "cpu", which computes. settings_of: a step's config class -> its
            settings. row_tokens: of the longest row to train on. base: of what finetune and optimize take in place of
            the original's quantized form.
    """
    quantized = base or after_quantizing(size)
    quantize: QuantizeConfig = settings_of(QuantizeConfig)
    finetune: FinetuneConfig = settings_of(FinetuneConfig)
    optimize: OptimizeConfig = settings_of(OptimizeConfig)
    evaluate: EvaluateConfig = settings_of(EvaluateConfig)
    return {
        "quantize": estimate_quantize(size, device, quantize.samples, quantize.seq_len, quantize.refine,
                                      quantize.generated),
        "finetune": estimate_finetune(quantized, device, finetune.lora_r or DEFAULT_RANK, finetune.batch_size,
                                      row_tokens),
        "optimize": estimate_optimize(quantized, device, optimize.embeddings or optimize.head, optimize.head),
        "evaluate": estimate_evaluate(size, device, evaluate.seq_len),
        "chat": estimate_chat(size, device),
    }
