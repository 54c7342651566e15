"""Pictures of figures, as the places of their lines, marks and labels; `templates/` draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 420.0, 210.0  # of a picture; on a phone it is about as wide as that
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 36.0  # margins around the field, for labels
MOST = 300  # points of a line that are drawn
Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A place along an axis, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A column, a dot or a line across: its place, its size, and what it says when it is pointed at."""

    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    label: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """x_label, y_label: what the axes show. lines: name and points. marks: columns or dots. at: a line from top to
    bottom, or None."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[tuple[str, list[Point]]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    at: Mark | None = None
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


class Scale:
    """From figures to places, between the lowest and the highest value, rounded outwards to where ticks are.

    values: 0, or of a size between 1e-15 and 1e15.
    """

    def __init__(self, values: Sequence[float], start: float, end: float, zero: bool = False):
        low, high = min(values), max(values)
        low = min(low, 0.0) if zero else low
        span = high - low
        step = _step(span if span > 1e-9 * abs(high) else abs(high) or 1.0)
        self.low, self.high = math.floor(low / step) * step, math.ceil(high / step) * step
        if self.low == self.high:
            self.high += step
        self.start, self.end, self.step = start, end, step

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self) -> list[Tick]:
        count = round((self.high - self.low) / self.step)
        values = (self.low + i * self.step for i in range(count + 1))
        return [Tick(self(value), f"{value:.10g}") for value in values]


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, about a quarter of the span."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power * 4 >= span * 0.999)


def line_chart(title: str, series: Sequence[tuple[str, Sequence[Point]]], x_label: str, y_label: str,
               at: tuple[float, str] | None = None) -> Chart:
    """Lines through (x, y). at: an x to mark, and why. At least one point is needed, and every figure is finite."""
    points = [point for _, line in series for point in line]
    x = Scale([p[0] for p in points], LEFT, WIDTH - RIGHT)
    y = Scale([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    lines = [(name, [(x(a), y(b)) for a, b in thinned(line)]) for name, line in series if line]
    mark = Mark(x(at[0]), 0.0, label=at[1]) if at and x.low <= at[0] <= x.high else None
    return Chart(title, x_label, y_label, x.ticks(), y.ticks(), lines, at=mark)


def column_chart(title: str, values: Sequence[float], x_label: str, y_label: str, unit: str = "") -> Chart:
    """A column for each value, numbered from 0."""
    y = Scale(values, HEIGHT - BOTTOM, TOP, zero=True)
    slot = (WIDTH - LEFT - RIGHT) / len(values)
    every = max(1, math.ceil(len(values) / 8))
    marks = [Mark(round(LEFT + (i + 0.1) * slot, 2), min(y(0), y(value)), round(0.8 * slot, 2),
                  round(abs(y(0) - y(value)), 2), f"{i}: {value:.3g}{unit}") for i, value in enumerate(values)]
    ticks = [Tick(round(LEFT + (i + 0.5) * slot, 2), str(i)) for i in range(0, len(values), every)]
    return Chart(title, x_label, y_label, ticks, y.ticks(), marks=marks)


def dot_chart(title: str, dots: Sequence[tuple[float, float, str, str]], x_label: str, y_label: str) -> Chart:
    """Dots at (x, y), each with a label and a kind, by which it is coloured."""
    x = Scale([dot[0] for dot in dots], LEFT, WIDTH - RIGHT)
    y = Scale([dot[1] for dot in dots], HEIGHT - BOTTOM, TOP)
    marks = [Mark(x(a), y(b), label=label, kind=kind) for a, b, label, kind in dots]
    return Chart(title, x_label, y_label, x.ticks(), y.ticks(), marks=marks)


def thinned(line: Sequence[Any]) -> Sequence[Any]:
    """At most `MOST` of the points, evenly taken, the last one among them."""
    if len(line) <= MOST:
        return line
    return [line[round(i * (len(line) - 1) / (MOST - 1))] for i in range(MOST)]
