"""Training on a GPU with functions of our own for all that is computed element by element, and for adapters."""

from typing import TYPE_CHECKING, Any

from phicli.checkpoints.int4 import fused_kernel

if TYPE_CHECKING:
    from phicli.training.fused.fusing import Fused


def fuse(model: Any) -> "Fused | None":
    """Put them into a PeftModel on a GPU, whose base is frozen; None where Triton does not run."""
    if not fused_kernel():
        return None
    from phicli.training.fused.fusing import Fused

    return Fused(model)
