"""Words for what libraries raise on a user's model: no exception reaches a person bare."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from phicli.errors import BadInput, PhicliError
from phicli.resources.shortage import ran_out


@contextlib.contextmanager
def worded(what: str, where: Path | None = None) -> Iterator[None]:
    """Turn whatever a library raises inside into BadInput: what cannot be done, with which file, and its own words.

    Only calls of libraries belong inside: a fault of ours must stay one. Memory that ran out and errors of the system
    (no space, no permission) pass as they are.
    """
    try:
        yield
    except PhicliError:
        raise
    except Exception as e:
        if ran_out(e) or type(e).__name__ == "OutOfMemoryError" or (isinstance(e, OSError) and e.errno):
            raise
        said = " ".join(str(e).split())[:300]
        raise BadInput(f"{what}: {type(e).__name__}{': ' if said else ''}{said}", where=where,
                       hint="another model", also=["the same with: phicli --traceback …"]) from e
