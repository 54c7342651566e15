"""What training and quantization have kept of their course: the loss, and the error of each layer."""

from collections.abc import Mapping
from typing import Any

from phicli.reporting.charts import Chart, column_chart, line_chart
from phicli.reporting.reading import figure

MOST_LAYERS = 1000


def curve(quality: Mapping[str, Any]) -> list[tuple[float, float | None, float | None]]:
    """Step, training loss and held-out loss of each point, as `TrainingState.curve` has them."""
    points = quality.get("curve")
    found = [tuple(map(figure, point)) for point in points if isinstance(point, list) and len(point) == 3] \
        if isinstance(points, list) else []
    return [(step, train, held_out) for step, train, held_out in found if step is not None]


def loss_chart(name: str, quality: Mapping[str, Any]) -> Chart | None:
    points = curve(quality)
    lines = [(what, [(point[0], value) for point in points if (value := point[at]) is not None])
             for what, at in (("training", 1), ("held-out", 2))]
    kept = figure(quality.get("kept_step"))
    return line_chart(f"Loss of {name}", lines, "step", "nats a token", None if kept is None else (kept, "kept")) \
        if any(line for _, line in lines) else None


def layer_errors(quality: Mapping[str, Any]) -> list[float]:
    """Of each layer's output, relative to its size."""
    errors = quality.get("layer_errors")
    return [value for error in errors[:MOST_LAYERS] if (value := figure(error)) is not None] \
        if isinstance(errors, list) else []


def error_chart(name: str, quality: Mapping[str, Any]) -> Chart | None:
    errors = [100 * error for error in layer_errors(quality)]
    return column_chart(f"Error of each layer of {name}", errors, "layer", "% of its output", " %") if errors else None
