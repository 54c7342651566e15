"""Writing into a settings file: everything else in it stays, comments too."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import read_text
from phicli.config.layers import LONGEST_FILE, SETTINGS, from_text
from phicli.config.setting import Setting
from phicli.errors import BadInput, UsageError


def write_settings(path: Path, values: Mapping[str, Any]) -> Path:
    """Write values, by key, into a settings file, which is made where there is none; returns its path.

    Raises:
        BadInput: the file is no TOML. Missing: it cannot be written.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    from phicli.artifacts.publishing import write_text

    try:
        document: Any = tomlkit.parse(read_text(path, LONGEST_FILE))
    except FileNotFoundError:
        document = tomlkit.document()
    except (TOMLKitError, RecursionError) as e:
        raise BadInput(f"not readable as TOML: {e}", where=path) from None
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        if table and table not in document:
            document[table] = tomlkit.table()
        (document[table] if table else document)[name] = list(value) if isinstance(value, tuple) else value
    write_text(path, tomlkit.dumps(document))
    return path


def known_setting(key: str) -> Setting:
    """The setting of a key. Raises UsageError, which names the nearest one."""
    if key not in SETTINGS:
        near = difflib.get_close_matches(key[:80], SETTINGS, 1, 0.5)
        raise UsageError(f"no setting '{key[:80]}'", hint=f"phicli config get {near[0]}" if near else "phicli config")
    return SETTINGS[key]


def typed_value(setting: Setting, text: str) -> Any:
    """What a person typed as the setting's value. Raises UsageError: out of range, or of another type."""
    try:
        return setting.checked(from_text(setting, text), setting.key)
    except BadInput as e:
        raise UsageError(e.message, where=setting.key) from None
