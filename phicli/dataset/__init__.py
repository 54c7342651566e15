"""Files of rows: reading them, inspecting them, writing a clean copy."""

from phicli.dataset.rows import Row, load_rows, read_rows

__all__ = ["Row", "load_rows", "read_rows"]
