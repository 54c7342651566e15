"""`phicli config`: every setting, its value, and where the value comes from."""

from phicli.cli import console, options
from phicli.config.layers import SETTINGS, Settings


def config(json: options.Json = False) -> None:
    """Show every setting, its value and where the value comes from.

    Examples:
      phicli config
      phicli config --json
    More: docs/settings.md
    """
    settings = Settings()
    values = {key: settings.get(setting) for key, setting in SETTINGS.items()}
    if json:
        console.result_json({key: {"value": v.value, "origin": v.origin} for key, v in values.items()})
        return
    rows = [
        (key, repr(v.value) if isinstance(v.value, str) else v.value, v.origin, SETTINGS[key].env, SETTINGS[key].help)
        for key, v in values.items()
    ]
    console.result_table(("setting", "value", "from", "environment", "meaning"), rows)
