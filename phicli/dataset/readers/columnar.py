"""Parquet and Arrow, batch by batch."""

import json
import math
from collections.abc import Iterator
from typing import Any

from phicli.dataset import lines
from phicli.dataset.lines import Container, Line
from phicli.dataset.streams import BLOCK
from phicli.errors import BadInput

ROWS = 64  # made into Python objects at once: each may be as large as a row may be


class ColumnarReader(Container):
    """Rows of a columnar file, numbered from 1. Lists and structs become JSON's, dates and bytes text, NaN null.

    A row that cannot be made into JSON, such as text that is no UTF-8, is a row with a fault.
    """

    numbers_rows = True

    def __iter__(self) -> Iterator[Line]:
        import pyarrow as pa

        number = 0
        file = self.stream.seekable()
        try:
            for batch in self._batches(file):
                for at in range(0, batch.num_rows, ROWS):
                    for data, fault in _rows(batch.slice(at, ROWS)):
                        number += 1
                        if len(data) > lines.MAX_LINE:
                            raise BadInput(f"a row of more than {lines.MAX_LINE >> 20} MB",
                                           where=f"{self.name}, row {number}")
                        yield Line(number, data, fault=fault)
        except (pa.ArrowException, OSError, ValueError) as e:
            first = str(e).partition("\n")[0]
            raise BadInput(f"damaged, or not {self.kind}: {first}", where=self.name) from None
        finally:
            file.close()

    def _batches(self, file: Any) -> Iterator[Any]:
        raise NotImplementedError


class ParquetReader(ColumnarReader):
    kind = "a Parquet file"

    def _batches(self, file: Any) -> Iterator[Any]:
        import pyarrow.parquet as pq

        whole = pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK)  # a row group at once may be the whole file
        _check_names(whole.schema_arrow, self.name)
        done = 0
        for batch in whole.iter_batches(ROWS, use_threads=False):
            done += batch.num_rows
            self.stream.done = (self.size or 0) * done // max(whole.metadata.num_rows, 1)
            yield batch


class ArrowReader(ColumnarReader):
    kind = "an Arrow file"

    def _batches(self, file: Any) -> Iterator[Any]:
        import pyarrow as pa

        if self.stream.head.startswith(b"ARROW1"):
            whole = pa.ipc.open_file(file)
            batches: Iterator[Any] = (whole.get_batch(i) for i in range(whole.num_record_batches))
        else:
            batches = whole = pa.ipc.open_stream(file)
        _check_names(whole.schema, self.name)
        for batch in batches:
            self.stream.done = min(file.tell(), self.size or self.stream.done)
            yield batch


def _check_names(schema: Any, name: str) -> None:
    if len(set(schema.names)) < len(schema.names):
        raise BadInput("two columns have the same name", where=name, hint="give each a name of its own")


def _rows(batch: Any) -> list[tuple[bytes, str | None]]:
    """JSON of each row, and why there is none."""
    try:
        batch.validate(full=True)  # a stranger's offsets may lead anywhere
        return [(_json(row), None) for row in batch.to_pylist()]
    except Exception as e:
        if batch.num_rows > 1:
            return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]
        return [(b'""', f"{type(e).__name__}: {e}".partition("\n")[0][:200])]


def _json(row: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, default=_as_text, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(row), ensure_ascii=False, default=_as_text)
    return text.encode("utf-8")


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list) else value
