"""A GGUF file as a model folder: its weights in 16 bits, config.json, tokenizer and chat template, made once.

Weights go through memory a few megabytes at a time. The folder lies in phicli's cache, under the file's hash.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from phicli.artifacts.cache import user_cache
from phicli.artifacts.gguf import LONGEST, EndlessHeader, GgufHeader, StoredTensor, parse_gguf, read_gguf
from phicli.artifacts.locks import held
from phicli.artifacts.private import private_folder
from phicli.artifacts.publishing import publishing
from phicli.artifacts.reading import open_regular
from phicli.artifacts.stages import fingerprint
from phicli.errors import BadInput, Missing
from phicli.hub.fitting import check_config, check_weights_fit
from phicli.hub.gguf_config import ORIGINAL, config_of, ends_of, family_of, names_of
from phicli.hub.gguf_tokenizer import check_tokenizer, save_tokenizer
from phicli.hub.remote_file import RemoteFile
from phicli.libraries import subdued
from phicli.progress import Progress
from phicli.units import size

FORM = 1  # of the folder; another one makes all folders anew
CHUNK = 16 << 20  # bytes of packed rows that are unpacked at a time
MOST_FACTORS = 4096
F32, BF16 = 0, 30  # ggml's numbers
FIRST = 1 << 20  # bytes of a header that are fetched at first

Read = Callable[[int, int], bytes]  # from which byte on, how many at most


def is_gguf(reference: str) -> bool:
    """Whether a model's name is that of a GGUF file: a path, or owner/name/file.gguf of the hub's."""
    return reference.lower().endswith(".gguf") and not Path(reference).expanduser().is_dir()


def judge_gguf(path: Path) -> tuple[GgufHeader, dict[str, Any]]:
    """The header of a GGUF file that phicli can work with, and its config.json. Raises BadInput otherwise."""
    header = read_gguf(path)
    with open_regular(path) as file:
        def read(begin: int, count: int) -> bytes:
            file.seek(begin)
            return file.read(count)

        return header, _judged(header, read)


def judge_remote(file: RemoteFile) -> dict[str, Any]:
    """The config.json of a GGUF file of the hub that phicli can work with, of which no more is fetched than its header.

    Raises:
        BadInput: as `judge_gguf`. NoParts: the server has only whole files.
    """
    data = b""
    while True:
        data += file.read(len(data), len(data) or FIRST)
        try:
            return _judged(parse_gguf(data, file.size, file.path), file.read)
        except EndlessHeader:
            if len(data) >= min(file.size, LONGEST):
                raise


def _judged(header: GgufHeader, read: Read) -> dict[str, Any]:
    """read: gives bytes of the file."""
    path = header.path
    config = config_of(header, _factors(header, read))
    check_config(config, path)
    names = names_of(header, _layers(header, config))
    shapes = {names[name]: {"shape": tensor.shape} for name, tensor in header.tensors.items() if name in names}
    check_weights_fit(config, shapes, path)
    _check_vectors(config, shapes, path)
    check_tokenizer(header)
    return config


@subdued()
def unpack_gguf(path: Path, progress: Progress) -> Path:
    """The model folder of a GGUF file, from the cache or made now.

    Raises:
        BadInput: as `judge_gguf`, numbers that 16 bits do not hold, or a type of numbers that is not known.
        Missing: the package gguf, or space.
    """
    header, config = judge_gguf(path)
    folder = _place(path)
    if folder.is_dir():
        return folder
    if not find_spec("gguf"):
        raise Missing("the package gguf, which reads this file, is not installed", where=path,
                      hint="pip install 'phicli[gguf]'")
    with held(folder, progress):
        if not folder.is_dir():
            progress.note(f"unpacking {path.name} ({size(path.stat().st_size)}) to 16 bits, once: {folder}")
            with publishing(folder) as fresh:
                _write_config(header, config, fresh)
                save_tokenizer(header, fresh)
                _write_weights(header, config, fresh / "model.safetensors", progress)
    return folder


def unpacked_gguf(path: Path) -> Path | None:
    """The model folder of a GGUF file if it has been made. Raises BadInput: a file that cannot be read."""
    folder = _place(path)
    return folder if folder.is_dir() else None


def _place(path: Path) -> Path:
    name = re.sub(r"[^\w.-]+", "-", path.stem)[:60]
    key = sha256(f"{FORM} {fingerprint(path)}".encode()).hexdigest()[:16]
    return private_folder(private_folder(user_cache()) / "gguf") / f"{name}-{key}"


def _layers(header: GgufHeader, config: dict[str, Any]) -> int:
    """The number of layers. Raises BadInput where the tensors are of another number."""
    found = {int(one[1]) for name in header.tensors if (one := re.match(r"blk\.(\d{1,6})\.", name))}
    says = config.get("num_hidden_layers")
    if not found or len(found) != says or max(found) >= len(found):
        raise BadInput(f"its settings say {says} layers, the weights have {len(found)}", where=header.path)
    return len(found)


def _factors(header: GgufHeader, read: Read) -> dict[str, list[float]]:
    """What stands in the tensors that become settings."""
    found = {}
    for name in family_of(header).beside:
        if tensor := header.tensors.get(name):
            count = math.prod(tensor.shape)
            if tensor.kind != F32 or count > MOST_FACTORS:
                raise BadInput(f"{name} is no short list of numbers", where=header.path)
            found[name] = list(struct.unpack(f"<{count}f", _whole(read(tensor.begin, 4 * count), 4 * count, header)))
    return found


def _check_vectors(config: dict[str, Any], shapes: dict[str, Any], path: Path) -> None:
    """Raise BadInput for a norm or bias of another length than what it belongs to."""
    for name, entry in shapes.items():
        module, kind = name.rsplit(".", 1)
        if kind == "bias":
            need = shapes[f"{module}.weight"]["shape"][:1]
        elif module.endswith("norm"):
            need = (config["head_dim" if module.endswith(("q_norm", "k_norm")) else "hidden_size"],)
        else:
            continue
        if entry["shape"] != need:
            raise BadInput(f"{name} has the shape {entry['shape']}, not {need}", where=path)


def _write_config(header: GgufHeader, config: dict[str, Any], folder: Path) -> None:
    config = config | {"dtype": _dtype(header)[0]}
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": ends_of(header),
                  "pad_token_id": config["pad_token_id"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _dtype(header: GgufHeader) -> tuple[str, str]:
    """As config.json and safetensors call it: what floats of 16 bits the file has, else float16."""
    kinds = {tensor.kind for tensor in header.tensors.values()}
    return ("bfloat16", "BF16") if BF16 in kinds else ("float16", "F16")


def _write_weights(header: GgufHeader, config: dict[str, Any], path: Path, progress: Progress) -> None:
    """One safetensors file: the length of its header, the header, the tensors side by side."""
    dtype, short = _dtype(header)
    entries, end = {}, 0
    names = names_of(header, config["num_hidden_layers"])
    for name, theirs in names.items():
        begin, end = end, end + 2 * math.prod(header.tensors[name].shape)
        entries[theirs] = {"dtype": short, "shape": header.tensors[name].shape, "data_offsets": [begin, end]}
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    head += b" " * (-len(head) % 8)
    with open_regular(header.path) as file, path.open("wb") as out, progress.task("unpack", end, "B") as task:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            turned = family_of(header).turned.get(name.split(".", 2)[-1])
            heads = config[turned] if turned else 0
            for rows in _unpacked(file, header, name, heads, dtype):
                out.write(rows)
                task.advance(len(rows))


def _unpacked(file: BinaryIO, header: GgufHeader, name: str, heads: int, dtype: str) -> Iterator[bytes]:
    """The tensor's numbers in 16 bits, row by row; of so many heads, if any, the rows as Hugging Face has them."""
    import ml_dtypes
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    tensor, wanted = header.tensors[name], ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    try:
        kind = GGMLQuantizationType(tensor.kind)
        block, width = GGML_QUANT_SIZES[kind]
        rows, row = math.prod(tensor.shape[:-1]), _row_bytes(tensor, block, width)
        at_once = rows if heads else max(1, CHUNK // row)
        file.seek(tensor.begin)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            packed = np.frombuffer(_whole(file.read(count * row), count * row, header), np.uint8).reshape(count, row)
            if heads:  # llama.cpp: the two halves of a head by turns
                packed = packed.reshape(heads, -1, 2, row).swapaxes(1, 2).reshape(rows, row)
            with np.errstate(over="ignore"):
                numbers = dequantize(packed, kind).astype(wanted)
            if not np.isfinite(numbers.astype(np.float32)).all():
                raise BadInput(f"{name} holds NaN, or numbers that {dtype} does not hold", where=header.path)
            yield numbers.tobytes()
    except (ValueError, KeyError, NotImplementedError) as e:
        raise BadInput(f"{name}: its type of numbers, {tensor.kind}, cannot be unpacked: {e}", where=header.path,
                       hint=ORIGINAL) from None


def _row_bytes(tensor: StoredTensor, block: int, width: int) -> int:
    if tensor.shape[-1] % block:
        raise ValueError(f"rows of {tensor.shape[-1]} are no blocks of {block}")
    return tensor.shape[-1] // block * width


def _whole(found: bytes, count: int, header: GgufHeader) -> bytes:
    if len(found) != count:
        raise BadInput("truncated: tensors lie past its end", where=header.path)
    return found
