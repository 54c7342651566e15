"""The version of phicli, for modules that the package itself imports."""

import re
from pathlib import Path

__version__ = "0.1.0"

TESTED = "constraints.txt"  # in the package where it was installed from a wheel, beside it in a checkout


def tested_versions() -> dict[str, str]:
    """Package -> version that the tests ran with; empty where the list is not at hand."""
    package = Path(__file__).parent
    for path in (package / TESTED, package.parent / TESTED):
        if path.is_file():
            return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.M))
    return {}
