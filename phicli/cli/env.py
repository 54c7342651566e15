"""`phicli env`: what a bug report needs to say about a machine; no secrets, no names, no paths."""

from phicli.cli import console, options
from phicli.config.layers import SETTINGS, Settings
from phicli.errors import PhicliError

HIDDEN = ("azure.", "upload.")  # what begins the names of settings whose values are nobody's business


def env(json: options.Json = False) -> None:
    """Show versions, machine and settings for a bug report: no secrets, no names, no paths.

    Examples:
      phicli env
      phicli env --json
    More: docs/housekeeping.md
    """
    from phicli.doctor.machine import describe

    found = {**describe(), **_settings()}
    if json:
        console.result_json(found)
    else:
        console.result_list((name, str(value)) for name, value in found.items())


def _settings() -> dict[str, str]:
    """The settings that are not the defaults; of paths, texts and what concerns Azure only that they are set."""
    try:
        settings = Settings()
        found = {key: settings.get(setting) for key, setting in SETTINGS.items()}
    except PhicliError as e:
        return {"settings": f"cannot be read ({type(e).__name__})"}
    told = {}
    for key, value in found.items():
        if value.origin != "default":
            plain = isinstance(value.value, bool | int | float) or value.value in SETTINGS[key].choices
            origin = "environment" if value.origin == SETTINGS[key].env else "settings file"
            told[key] = f"{value.value if plain and not key.startswith(HIDDEN) else '(set)'}, from the {origin}"
    return told
