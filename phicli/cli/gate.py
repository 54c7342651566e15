"""`phicli gate`: an exit code for continuous integration."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.config.measuring import GateConfig
from phicli.errors import Refused

OTHER_ROWS = "the same tokenizer, --eval-data, --rows and --seq-len as when it was accepted"
COLUMNS = ("check", "of", "found", "limit", "passed")


def gate(config: GateConfig, json: options.Json = False) -> Sequence[Next]:
    """Check a build against limits and the last accepted one; exit with 6 if worse.

    Examples:
      phicli gate --accept
      phicli gate --max-kl 0.05 --max-size 2.4GB --min-speed 20
    More: docs/evaluate.md
    """
    with console.task_log("gate", config.root_folder) as progress:
        from phicli.steps.gate import gate as check

        result = check(config, progress)
    if json:
        console.result_json({"passed": not result.failed, "accepted": result.accepted,
                             "checks": [asdict(one) for one in result.checks]})
    elif not result.checks:
        console.result(str(result.accepted))
    else:
        console.result_table(COLUMNS, [(one.name, one.of, one.found, one.limit, "yes" if one.passed else "NO")
                                       for one in result.checks])
    if result.failed:
        first = ", ".join(f"{one.name} of {one.of}" if one.of else one.name for one in result.failed[:3])
        more = f" and {len(result.failed) - 3} more" if len(result.failed) > 3 else ""
        raise Refused(f"{len(result.failed)} of {len(result.checks)} checks failed: {first}{more}",
                      where=result.accepted, hint=_hint(result.failed))
    if config.accept:
        console.note(f"accepted: later builds are compared with {result.accepted}")
    return [("gate",)] if config.accept else [("upload",)]


def _hint(failed: Sequence[Any]) -> str:
    """What to do about failed checks; accepting the build helps against none of the limits that were given."""
    from phicli.steps.accepted import SAME_ROWS

    if SAME_ROWS in {one.name for one in failed}:
        return OTHER_ROWS
    if limits := dict.fromkeys(one.option for one in failed if one.option):
        return f"another build, or other limits: {', '.join(limits)}"
    return "if the build is to be so: phicli gate --accept"
