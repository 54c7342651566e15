"""A root's quantized model and adapters as vLLM takes them; seen with vLLM 0.20.2 and 0.32.0."""

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phicli.artifacts.names import ADAPTER_CONFIG, FINETUNED, GENAI_CONFIG
from phicli.artifacts.publishing import publishing
from phicli.checkpoints.peft_folder import weights_path
from phicli.errors import BadInput, Missing
from phicli.export.plain_adapter import write_adapter
from phicli.export.sources import Source
from phicli.hub.models import find_base, read_config

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that it takes for the largest
QUANTIZE = "phicli quantize"
UNKNOWN = "olive"  # the quant_method of what Olive's own algorithms write


def choose_checkpoint(path: str | None, root: Path) -> Path:
    """The checkpoint to serve: of that path, or the root's.

    Raises:
        Missing: as `find_base`. BadInput: one that vLLM cannot read.
    """
    try:
        folder = Path(path) if path else find_base(root)
    except Missing as error:
        error.hint, error.also = QUANTIZE, ()
        raise
    if (folder / GENAI_CONFIG).exists():
        raise BadInput("an ONNX model, which vLLM does not take", where=folder, hint="phicli serve --path FOLDER")
    if (read_config(folder).get("quantization_config") or {}).get("quant_method") == UNKNOWN:
        raise BadInput("vLLM cannot read what Olive's algorithms write", where=folder,
                       hint=f"{QUANTIZE} --algorithm awq")
    return folder


def choose_adapters(names: Sequence[str], root: Path, checkpoint: Path, base: str,
                    warn: Callable[[str], None]) -> dict[str, Source]:
    """The adapters under a root to serve, by name.

    Args:
        names: those that were asked for; none: all that vLLM can take, the others are told of.
        base: the name of the model without an adapter.

    Raises:
        BadInput: one that was asked for is not there, is called as the base, is damaged, of too large a rank, or, as
            NoSlot, more than LoRA.
    """
    trained = root / FINETUNED
    known = {path.parent.name: path.parent for path in sorted(trained.glob(f"[!.]*/{ADAPTER_CONFIG}"))}
    if missing := [name for name in names if name not in known]:
        raise BadInput(f"no adapter '{missing[0]}'; there are: {', '.join(known) or 'none'}", where=trained,
                       hint=f"phicli finetune --name {shlex.quote(missing[0])}")
    found = {}
    for name in names or known:
        source = Source(name, known[name])
        try:
            _check(source, checkpoint, base)
        except BadInput as error:
            if names:
                raise
            warn(f"adapter {name} is left out: {error}")
        else:
            found[name] = source
    return found


def _check(source: Source, checkpoint: Path, base: str) -> None:
    if source.name == base:
        raise BadInput(f"it is called '{base}', as the model itself", where=source.folder, hint="rename its folder")
    source.check_kind(checkpoint)
    if source.rank > RANKS[-1]:
        raise BadInput(f"rank {source.rank}, and vLLM takes up to {RANKS[-1]}", where=source.folder)


def largest_rank(adapters: Mapping[str, Source]) -> int:
    """What vLLM has to be told."""
    largest = max(source.rank for source in adapters.values())
    return next(rank for rank in RANKS if rank >= largest)


def write_adapters(adapters: Mapping[str, Source], output: Path, checkpoint: str) -> None:
    """A folder for each, by name, without what vLLM does not know: scales of linears, copies of embeddings, mlx-lm's
    names. What is up to date there stays, as another vLLM may read it.

    Raises:
        BadInput: as `read_peft` and `write_adapter`. Missing: no space or no permission.
    """
    for name, source in adapters.items():
        own = (source.folder / ADAPTER_CONFIG, weights_path(source.folder))
        with contextlib.suppress(OSError):
            if (output / name / ADAPTER_CONFIG).stat().st_mtime_ns > max(file.stat().st_mtime_ns for file in own):
                continue
        output.mkdir(parents=True, exist_ok=True)
        with publishing(output / name) as fresh:
            write_adapter(source.loras, fresh, checkpoint)
