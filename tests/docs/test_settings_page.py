"""docs/settings.md is what scripts/settings_page.py writes, and it leaves no setting out."""

import runpy
from pathlib import Path

from phicli.config.layers import SETTINGS

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    written = runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text() == written, "run: python scripts/settings_page.py"


def test_the_page_has_every_setting_once():
    page = (ROOT / "docs" / "settings.md").read_text()
    for setting in SETTINGS.values():
        assert page.count(f"`{setting.key}` | `{setting.env}` |") == 1
        assert setting.help.replace("|", "\\|") in page
