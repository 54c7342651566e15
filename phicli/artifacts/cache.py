"""Where phicli keeps what it can make or fetch again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """phicli's part of the user's cache folder; it need not be there."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "phicli"  # noqa: PTH111 (Path.expanduser fails without a home)
