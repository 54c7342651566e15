"""Putting something of ours in the place of something of a library's, for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

from phicli.errors import Missing


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """Put `value` in the place of a module's, class's or object's attribute while the block runs; gives the original.

    Raises:
        Missing: there is none of that name.
    """
    original = getattr(owner, name, None)
    if original is None:
        owner_name = getattr(owner, "__name__", type(owner).__name__)
        raise Missing(f"{owner_name} has no {name}: a version that is not supported",
                      hint="install the versions in constraints.txt")
    own = name in vars(owner)
    setattr(owner, name, value)
    try:
        yield original
    finally:
        if own:
            setattr(owner, name, original)
        else:  # a class's, seen through its object
            delattr(owner, name)
