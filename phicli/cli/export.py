"""`phicli export`: a model or an adapter for other programs."""

from phicli.cli import console, options
from phicli.config.exporting import ExportConfig


def export(config: ExportConfig, json: options.Json = False) -> None:
    """Write a model or an adapter for other programs: the ONNX model, a GGUF file, a PEFT adapter.

    Examples:
      phicli export --model tiny
      phicli export --to gguf --adapter travel
    More: docs/merge.md
    """
    with console.task_log("export", config.root_folder) as progress:
        from phicli.steps.export import export as write

        place = write(config, progress)
    size = sum(path.stat().st_size for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file())
    if json:
        console.result_json({"path": str(place), "to": config.to, "bytes": size})
        return
    console.result(str(place))
    console.note(console.size(size))
