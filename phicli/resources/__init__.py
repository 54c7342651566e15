"""What each step of the lab needs of memory and disk, told from the size of the model before work starts."""

from phicli.resources.announcing import announce, existing, free_disk
from phicli.resources.sizes import ModelSize, size_of_config, size_of_folder, size_of_model
from phicli.resources.steps import (
           Need,
           after_quantizing,
           keeps_unpacked,
           of_chat,
           of_evaluate,
           of_finetune,
           of_optimize,
           of_quantize,
)

__all__ = ["ModelSize", "Need", "after_quantizing", "announce", "existing", "free_disk", "keeps_unpacked", "of_chat",
           "of_evaluate", "of_finetune", "of_optimize", "of_quantize", "size_of_config", "size_of_folder",
           "size_of_model"]
