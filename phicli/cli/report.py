"""`phicli report`: one page about all that was made."""

from collections.abc import Sequence

from phicli.cli import console
from phicli.cli.following import Next
from phicli.config.measuring import ReportConfig


def report(config: ReportConfig) -> Sequence[Next]:
    """Write one page about all that was made: sizes, quality, loss, error of each layer, speed, answers.

    It is one file, which asks no host for anything and runs no program; stdout has its path.

    Examples:
      phicli report --model tiny
      phicli report --format markdown --output report.md
    More: docs/report.md
    """
    from phicli.steps.report import report as write

    console.result(str(write(config)))
    return [("verify",)]
