"""Where the settings file is, and what the relative paths in it mean."""

import glob
import os
import re
from pathlib import Path
from typing import Any

from phicli.artifacts.private import others_can_write
from phicli.config.setting import Setting, expand

CONFIG_NAME = "phicli.toml"
_WEIGHT = re.compile(r":[\d.]+$")  # of data: rows.jsonl:2


def find_settings_file() -> Path | None:
    """phicli.toml of the working folder, or of the nearest folder above it, up to the home folder or the top.

    Above the working folder, a file that another user could have put there does not count.

    Returns:
        its path as seen from the working folder; None where there is none.
    """
    if Path(CONFIG_NAME).is_file():
        return Path(CONFIG_NAME)
    try:
        here, home = Path.cwd(), Path(os.path.realpath(os.path.expanduser("~")))  # noqa: PTH111 (may be no home)
        for depth, folder in enumerate([] if here == home else here.parents, 1):
            if os.path.isfile(folder / CONFIG_NAME) and not others_can_write(folder / CONFIG_NAME):  # noqa: PTH113
                return Path(*[".."] * depth, CONFIG_NAME)
            if folder == home:
                break
    except OSError:  # the working folder is gone, or lies where this user may not look
        pass
    return None


def placed(setting: Setting, value: Any, folder: Path) -> Any:
    """A value of a file in `folder`, its relative paths as seen from the working folder.

    What may be the name of something else, a model of the hub's, say, is a path where there is such a file or folder.
    """
    if isinstance(value, tuple):
        return tuple(placed(setting, one, folder) for one in value)
    if not setting.path or not isinstance(value, str) or not value or value[0] in "~-" or "\0" in value:
        return value
    there = folder / value
    if setting.reference and value[0] != "." and not is_there(str(there)):
        return value
    return value if folder == Path() else str(there)


def is_there(path: str) -> bool:
    """Whether there is a file or folder of that name or pattern, a weight after it aside."""
    plain = expand(apart(path)[0])
    return os.path.exists(plain) or bool(matching(plain))  # noqa: PTH110 (a Path may raise)


def apart(path: str) -> tuple[str, str]:
    """A path and the weight after it, such as ":2"; none where a file has that whole name."""
    name = path if os.path.exists(expand(path)) else _WEIGHT.sub("", path)  # noqa: PTH110 (a Path may raise)
    return name, path[len(name):]


def matching(pattern: str) -> list[Path]:
    """The files of a pattern such as `rows/*.jsonl`, in the order of their names; `**` goes into folders below.

    None where there is a file or folder of that very name.
    """
    if not glob.has_magic(pattern) or os.path.exists(expand(pattern)):  # noqa: PTH110 (a Path may raise)
        return []
    found = glob.glob(expand(pattern), recursive=True)  # noqa: PTH207 (a Path's needs a folder to begin at)
    return sorted(path for path in map(Path, found) if path.is_file())
