"""Lists that come in pages, with an end."""

from itertools import islice
from typing import Any

from phicli.errors import RemoteError

MOST = 100_000  # entries
MOST_EMPTY = 100  # pages without an entry


def listed(paged: Any) -> list[Any]:
    """All entries of the SDK's ItemPaged.

    Raises:
        RemoteError: the same page again, page after page with nothing in it, or more than MOST entries.
    """
    found: list[Any] = []
    seen: set[str] = set()
    empty = 0
    pages = paged.by_page()
    for page in pages:
        before = len(found)
        found += islice(page, MOST + 1 - before)
        empty += len(found) == before
        token = pages.continuation_token
        if len(found) > MOST or empty > MOST_EMPTY or token in seen:
            raise RemoteError("a list that does not end")
        if token:
            seen.add(token)
    return found
