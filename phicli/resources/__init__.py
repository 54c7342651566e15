"""What each step of the lab needs of memory and disk, told from the size of the model before work starts."""

from phicli.resources.announcing import announce, existing, free_disk
from phicli.resources.estimates import (
    Estimate,
    after_quantizing,
    estimate_chat,
    estimate_evaluate,
    estimate_finetune,
    estimate_merge,
    estimate_optimize,
    estimate_quantize,
    keeps_unpacked,
)
from phicli.resources.of_steps import step_estimates
from phicli.resources.sizes import ModelSize, size_of_config, size_of_folder, size_of_model

__all__ = ["Estimate", "ModelSize", "after_quantizing", "announce", "estimate_chat", "estimate_evaluate",
           "estimate_finetune", "estimate_merge", "estimate_optimize", "estimate_quantize", "existing", "free_disk",
           "keeps_unpacked", "size_of_config", "size_of_folder", "size_of_model", "step_estimates"]
