"""Which device torch computes on, and what memory it has."""

from phicli.errors import Missing


def choose_device(wanted: str) -> str:
    """"cuda" or "cpu" for "auto", "cuda" or "cpu".

    Raises:
        Missing: CUDA asked for and not usable.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        built = "no NVIDIA GPU or driver found" if torch.version.cuda else "this torch is built without CUDA"
        raise Missing(f"CUDA is not usable: {built}", hint="--device cpu, or install torch's CUDA build")
    return "cpu"


def available_memory(device: str) -> int:
    """Bytes that can be allocated on "cuda" or "cpu" now."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
