"""Where phicli keeps what it can make or fetch again."""

import os
from pathlib import Path

from phicli.errors import Missing


def user_cache() -> Path:
    """phicli's part of the user's cache folder. It need not be there, and others may be able to write to it.

    As the XDG Base Directory Specification has it, a relative path counts as none. Without a home folder in the
    environment the list of users says where it is.

    Raises:
        Missing: there is no home folder.
    """
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    base = named if os.path.isabs(named) else os.path.join(_home(), ".cache")  # noqa: PTH117, PTH118 (text, of others)
    if not os.path.isabs(base):  # noqa: PTH117
        raise Missing("no cache folder: neither XDG_CACHE_HOME nor HOME is an absolute path",
                      hint="XDG_CACHE_HOME=/FOLDER")
    return Path(base) / "phicli"


def _home() -> str:
    if os.name == "nt" or os.path.isabs(os.environ.get("HOME", "")):  # noqa: PTH117
        return os.path.expanduser("~")  # noqa: PTH111 (Path.home fails without a home)
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""
