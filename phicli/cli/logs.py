"""`phicli logs`: what libraries said while a command ran."""

import contextlib
import os
import time
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.config.commands import LogsConfig
from phicli.errors import UsageError

LONGEST = 1 << 20  # bytes shown of a log, its last


def logs(
    config: LogsConfig,
    command: Annotated[str | None, typer.Argument(help="Command whose last log is shown", metavar="COMMAND",
                                                  show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """List the logs under the root, or show the last one of a command: what libraries said while it ran.

    Examples:
      phicli logs
      phicli logs finetune --model tiny
    More: docs/housekeeping.md
    """
    from phicli.artifacts.logs import find_logs
    from phicli.artifacts.reading import open_regular

    found = find_logs(config.root_folder)
    if command:
        try:
            with open_regular(found[command]) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST))
                console.result(file.read(LONGEST).decode("utf-8", "replace").rstrip("\n"))
        except (KeyError, FileNotFoundError):  # the latter: the command has begun again
            others = ", ".join(name for name in found if name != command) or "none"
            raise UsageError(f"no log of {command}; there are: {others}",
                             where=config.root_folder / "logs", hint="phicli logs") from None
        return
    rows = []
    for name, path in found.items():
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(about.st_mtime))
            rows.append((name, str(path), written, about.st_size))
    if json:
        console.result_json([dict(zip(("command", "path", "written", "bytes"), row, strict=True)) for row in rows])
    else:
        console.result_table(("command", "log", "written", "size"), [(*row[:3], console.size(row[3])) for row in rows])
