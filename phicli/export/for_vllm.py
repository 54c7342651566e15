"""A root's quantized model and adapters as vLLM takes them; seen with vLLM 0.20.2 and 0.32.0."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phicli.artifacts.names import ADAPTER_CONFIG, FINETUNED
from phicli.checkpoints.adapter_settings import NoSlot
from phicli.errors import BadInput
from phicli.export.plain_adapter import write_adapter
from phicli.export.sources import Source
from phicli.hub.models import find_base, read_config

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that it takes for the largest
UNKNOWN = "olive"  # the quant_method of what Olive's own algorithms write


def choose_checkpoint(path: str | None, root: Path) -> Path:
    """The checkpoint to serve: of that path, or the root's.

    Raises:
        Missing: as `find_base`. BadInput: one that vLLM cannot read.
    """
    folder = Path(path) if path else find_base(root)
    if (read_config(folder).get("quantization_config") or {}).get("quant_method") == UNKNOWN:
        raise BadInput("vLLM cannot read what Olive's algorithms write", where=folder,
                       hint="phicli quantize --algorithm awq")
    return folder


def choose_adapters(names: Sequence[str], root: Path, checkpoint: Path, base: str,
                    warn: Callable[[str], None]) -> dict[str, Source]:
    """The adapters under a root to serve, by name.

    Args:
        names: those that were asked for; none: all that are plain LoRA, the others are told of.
        base: the name of the model without an adapter.

    Raises:
        BadInput: an adapter that is not there, is called as the base, is damaged or of too large a rank; NoSlot among
            them, if it was asked for.
    """
    trained = root / FINETUNED
    known = {path.parent.name: path.parent for path in sorted(trained.glob(f"[!.]*/{ADAPTER_CONFIG}"))}
    if missing := [name for name in names if name not in known]:
        raise BadInput(f"no adapter '{missing[0]}'; there are: {', '.join(known) or 'none'}", where=trained,
                       hint=f"phicli finetune --name {missing[0]}")
    found = {}
    for name in names or known:
        source = Source(name, known[name])
        try:
            source.check_kind(checkpoint)
        except NoSlot as error:
            if names:
                raise
            warn(f"adapter {name} is left out: {error}")
            continue
        if source.rank > RANKS[-1]:
            raise BadInput(f"rank {source.rank}, and vLLM takes up to {RANKS[-1]}", where=known[name])
        found[name] = source
    if base in found:
        raise BadInput(f"this adapter is called '{base}', as the model itself", where=known[base],
                       hint="rename its folder, or give the model a --name")
    return found


def largest_rank(adapters: Mapping[str, Source]) -> int:
    """What vLLM has to be told."""
    largest = max(source.rank for source in adapters.values())
    return next(rank for rank in RANKS if rank >= largest)


def write_adapters(adapters: Mapping[str, Source], output: Path, checkpoint: str) -> None:
    """A folder for each, by name, without what vLLM does not know: scales of linears, copies of embeddings, mlx-lm's
    names. Raises BadInput: as `read_peft` and `write_adapter`.
    """
    for name, source in adapters.items():
        (output / name).mkdir(parents=True)
        write_adapter(source.loras, output / name, checkpoint)
