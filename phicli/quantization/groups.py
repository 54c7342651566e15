"""Which group size the linears of a model take: of the inputs of each, a group shares a scale and a zero point."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.architectures import in_layer, last
from phicli.errors import BadInput

OLIVE_SIZES = (128, 64, 32, 16)
AWQ_SIZES = OLIVE_SIZES[:3]  # what genai's builder and AutoAWQ's kernels read
PER_WORD = 8  # outputs that AWQ packs into a word


def choose_group_size(headers: Mapping[str, Any], given: int | None, skip: Sequence[str], awq: bool,
                      folder: Path) -> tuple[int, list[str]]:
    """The group size of a model's decoder layers, and remarks about it.

    Without a given one it is the largest that divides the inputs of every linear. AWQ's format can leave a linear in
    float, so where no size divides all, that one is taken which leaves the fewest weights in float.

    Args:
        headers: tensor name -> its entry in a safetensors header. given: what the user wants, or None.
        skip: parts of names that are to stay in float. awq: the format is AWQ's, else Olive's.

    Raises:
        BadInput: no linear can be quantized in such groups; or one cannot where another size fits them all, or where
            Olive's format would have to leave it in float.
    """
    shapes: dict[str, Sequence[int]] = {
        name.removesuffix(".weight"): entry["shape"] for name, entry in headers.items()
        if name.endswith(".weight") and in_layer(name) and len(entry["shape"]) == 2
        and not any(part in name for part in skip)}
    packed = [name for name, (outputs, _) in shapes.items() if not awq or outputs % PER_WORD == 0]

    def odd(size: int) -> list[str]:
        return [name for name in packed if shapes[name][1] % size]

    sizes = AWQ_SIZES if awq else OLIVE_SIZES
    fitting = next((size for size in sizes if not odd(size)), None)
    size = given or fitting or min(sizes, key=lambda n: sum(shapes[name][0] * shapes[name][1] for name in odd(n)))
    left = odd(size)
    stay = left + [name for name in shapes if name not in packed]
    count = f"{len(stay)} of {len(shapes)} linears"
    if stay and ((given and fitting and left) or not awq or len(stay) == len(shapes)):
        hint = (f"--group-size {fitting}, the default for this model" if fitting and left else
                "--algorithm awq leaves these in float" if not awq and len(stay) < len(shapes) else
                "another model: no group size fits this one")
        raise BadInput(f"{count} have widths that --group-size {size} does not divide: {stay[0]} has "
                       f"{shapes[stay[0]][1]} inputs", where=folder, hint=hint)
    remarks = []
    if size != (given or sizes[0]):
        first = odd(sizes[0])[0]
        remarks.append(f"group size {size}: {sizes[0]} does not divide the {shapes[first][1]} inputs of {last(first)}")
    if stay:
        remarks.append(f"{count} stay in float, as groups of {size} do not fit their widths: "
                       f"{', '.join(sorted(set(map(last, stay))))}")
    return size, remarks
