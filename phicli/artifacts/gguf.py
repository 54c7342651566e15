"""Reading the header of a GGUF file: what is said of the model, and where each tensor lies. Needs no other package.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import open_regular
from phicli.errors import BadInput

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
LONGEST = 32 << 20  # bytes of a header; vocabularies of 262,144 tokens take 12 million
ALIGNMENT = 32  # of the data, unless the file says another
MOST_DIMENSIONS = 4


class EndlessHeader(BadInput):
    """A header that goes on past the bytes that are there."""


@dataclass(frozen=True)
class StoredTensor:
    """shape: outermost first, as torch has it. kind: ggml's number of its type. begin: where its bytes are."""

    shape: tuple[int, ...]
    kind: int
    begin: int


@dataclass(frozen=True)
class GgufHeader:
    """metadata: key -> number, text or list of them. vocabulary: the file's bytes before the table of tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    vocabulary: bytes

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the model's own architecture: get("block_count") of "llama.block_count"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a GGUF file; memory and time are bounded by `LONGEST`.

    Raises:
        BadInput: another format or version, truncated or damaged, a key or tensor twice, no regular file.
        FileNotFoundError: none there.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return parse_gguf(file.read(LONGEST), size, path)


def parse_gguf(data: bytes, size: int, path: Path) -> GgufHeader:
    """The header in the first bytes of a GGUF file of so many bytes.

    Raises:
        EndlessHeader: it does not end in them. BadInput: as `read_gguf`.
    """
    head = _Head(data)
    try:
        if head.data[:4] != MAGIC:
            raise ValueError("does not begin with GGUF")
        version, tensors, pairs = head.numbers("IQQ", at=4)
        if version not in VERSIONS:
            raise ValueError(f"version {version}, known are {' and '.join(map(str, VERSIONS))}")
        metadata = dict(_once((head.text(), head.value(*head.numbers("I"))) for _ in range(pairs)))
        vocabulary = head.data[:head.at]
        table = dict(_once(head.entry() for _ in range(tensors)))
        alignment = metadata.get("general.alignment", ALIGNMENT)
        begin = -(-head.at // alignment) * alignment
        found = {name: StoredTensor(one.shape, one.kind, begin + one.begin) for name, one in table.items()}
        if any(one.begin >= size for one in found.values()):
            raise ValueError("truncated: tensors lie past its end")
    except struct.error:
        raise EndlessHeader("damaged GGUF file: its header has no end", where=path) from None
    except (ValueError, TypeError, ArithmeticError) as e:
        raise BadInput(f"damaged GGUF file: {e}", where=path) from None
    return GgufHeader(path, metadata, found, vocabulary)


class _Head:
    """The beginning of a file, read from front to back. Raises struct.error at its end, ValueError for damage."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def numbers(self, form: str, at: int | None = None) -> tuple[Any, ...]:
        begin = self.at if at is None else at
        found = struct.unpack_from(f"<{form}", self.data, begin)
        self.at = begin + struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        if length > len(self.data) - self.at:
            raise struct.error
        self.at += length
        return self.data[self.at - length: self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind])[0]
        if kind != ARRAY:
            raise ValueError(f"a value of type {kind}")
        inner, count = self.numbers("IQ")
        if inner not in NUMBERS and inner != TEXT:
            raise ValueError(f"an array of type {inner}")
        if count > len(self.data) - self.at:
            raise struct.error
        return [self.text() for _ in range(count)] if inner == TEXT else list(self.numbers(f"{count}{NUMBERS[inner]}"))

    def entry(self) -> tuple[str, StoredTensor]:
        name, (dimensions,) = self.text(), self.numbers("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{name[:80]} has {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")[::-1]
        kind, begin = self.numbers("IQ")
        if not 0 < math.prod(shape) < 1 << 48:
            raise ValueError(f"{name[:80]} has the shape {shape}")
        return name, StoredTensor(shape, kind, begin)


def _once(pairs: Any) -> Any:
    """The pairs; raises ValueError for a name that comes twice."""
    seen: set[str] = set()
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"{name[:80]!r} is there twice")
        seen.add(name)
        yield name, value
