"""`phicli azure show` and `phicli azure use`: which workspace the other commands mean, and what is behind it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from phicli.cli import console, options
from phicli.cli.following import Next
from phicli.cli.once import Command, Group
from phicli.config.azure import TransferConfig, WorkspaceConfig
from phicli.config.layers import Settings

app = typer.Typer(cls=Group, no_args_is_help=True,
                  help="Show or choose the Azure ML workspace that upload and download use.")


@app.command(cls=Command)
@options.command
def show(
    workspace: WorkspaceConfig,
    json: options.Json = False,
) -> None:
    """Show account, workspace, region and storage, like `az ml workspace show`.

    Examples:
      phicli azure show
      phicli azure show --workspace-name lab --resource-group ai
    More: docs/azure.md
    """
    from phicli.azure.target import find_target

    settings = Settings()
    target = find_target(settings, asdict(workspace), console.ask)
    with console.task_log("azure", "."):
        from phicli.azure.workspace import Workspace

        summary = Workspace(target, settings.resolve(TransferConfig)).summary()
    if json:
        console.result_json({key.replace(" ", "_"): value for key, value in summary.items()})
    else:
        console.result_table(("", "Azure ML"), summary.items())


@app.command(cls=Command)
@options.command
def use(
    workspace: WorkspaceConfig,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Check first that the workspace exists")] = True,
) -> Sequence[Next]:
    """Write the workspace into phicli.toml, so that no command has to be told again.

    Examples:
      phicli azure use --workspace-name lab --resource-group ai
      phicli azure use --workspace-name lab --no-check
    More: docs/azure.md
    """
    from phicli.azure.target import find_target, remember

    settings = Settings()
    target = find_target(settings, asdict(workspace), console.ask)
    if check:
        with console.task_log("azure", "."):
            from phicli.azure.workspace import Workspace

            Workspace(target, settings.resolve(TransferConfig))
    path = remember(target, settings.path)
    console.note(f"workspace {target.workspace_name} in resource group {target.resource_group}")
    console.result(str(path))
    return [("upload",)]
