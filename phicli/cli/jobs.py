"""`phicli jobs list|show|logs|cancel`: the jobs that `--on azureml` has begun."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.cli.once import Command, Group
from phicli.config.azure import JobConfig, TransferConfig, WorkspaceConfig
from phicli.config.layers import Settings

app = typer.Typer(cls=Group, no_args_is_help=True, help="Look at jobs in Azure ML, or end one.")
Name = Annotated[str, typer.Argument(help="Name of the job", show_default=False)]


@contextmanager
def _opened(workspace: WorkspaceConfig) -> Iterator[Any]:
    from phicli.azure.target import find_target

    settings = Settings()
    target = find_target(settings, asdict(workspace), console.ask)
    with console.task_log("azure", "."):
        from phicli.azure.workspace import Workspace

        yield Workspace(target, settings.resolve(TransferConfig))


@app.command("list", cls=Command)
@options.command
def list_(workspace: WorkspaceConfig, json: options.Json = False) -> Sequence[Next]:
    """List phicli's jobs in the workspace, the newest first.

    Examples:
      phicli jobs list
      phicli jobs list --json
    More: docs/azure.md
    """
    from phicli.azure.jobs import list_jobs

    with _opened(workspace) as opened:
        found = list_jobs(opened)
    if json:
        console.result_json([asdict(job) for job in found])
    else:
        console.result_table(("job", "status", "what", "compute"),
                             [(job.name, job.status, job.command, job.compute) for job in found])
    if found:
        return [("jobs show", found[0].name)]
    job = Settings().resolve(JobConfig)
    return [("run", "--on", "azureml")] if job.compute or job.instance_type else []


@app.command(cls=Command)
@options.command
def show(name: Name, workspace: WorkspaceConfig, json: options.Json = False) -> Sequence[Next]:
    """Show a job's status, how far it is, and where to see it in the studio.

    Examples:
      phicli jobs show phicli-run-0123456789abcdef
      phicli jobs show phicli-run-0123456789abcdef --json
    More: docs/azure.md
    """
    from phicli.azure.job_following import state_of
    from phicli.azure.jobs import get

    with _opened(workspace) as opened:
        job = get(opened, name)
        state = state_of(opened, job)
    document = {**asdict(job), **state}
    if json:
        console.result_json(document)
    else:
        console.result_list([(key, str(value)) for key, value in document.items() if value not in (None, "", {})])
    return [("jobs logs", name)]


@app.command(cls=Command)
@options.command
def logs(name: Name, workspace: WorkspaceConfig) -> None:
    """Print what a job's command has said, as lines of JSON.

    Examples:
      phicli jobs logs phicli-run-0123456789abcdef
      phicli jobs logs phicli-run-0123456789abcdef | tail
    More: docs/azure.md
    """
    from phicli.azure.job_following import log_of
    from phicli.azure.jobs import get

    with _opened(workspace) as opened:
        text = log_of(opened, get(opened, name))
    console.result(text.rstrip("\n"))


@app.command(cls=Command)
@options.command
def cancel(name: Name, workspace: WorkspaceConfig) -> Sequence[Next]:
    """End a job; what it has kept stays, and the command that began it goes on from there.

    Examples:
      phicli jobs cancel phicli-run-0123456789abcdef
      phicli jobs list
    More: docs/azure.md
    """
    from phicli.azure.jobs import cancel as end

    with _opened(workspace) as opened:
        status = end(opened, name)
    if status:
        console.note(f"had ended already: {status}")
    console.result(name)
    return [("jobs show", name)]
