"""Figures for people."""

import math
import re
import time
from datetime import datetime


def size(count: float) -> str:
    """Bytes for people: "2.4 GB", powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def bytes_of(text: str) -> float | None:
    """A size as people write it, "2.4GB" or "800 MB", in bytes; None where it is none."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?) ?([kMGT]?)B?", text.strip())
    return float(found[1]) * 1000.0 ** " kMGT".index(found[2] or " ") if found else None


def duration(seconds: float) -> str:
    """Seconds for people: "8.3 s", "2 min 05 s"."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def rough_duration(seconds: float) -> str:
    """A time that is an estimate, or moves: "7 s", "35 s", "2 min 15 s", "19 min", "2 h 10 min"."""
    step = next(step for under, step in ((10, 1), (60, 5), (600, 15), (3600, 60), (math.inf, 600)) if seconds < under)
    whole = round(seconds / step) * step
    if whole < 60:
        return f"{whole} s"
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value)


def number(value: float, digits: int = 4) -> str:
    """A figure in plain digits, the first `digits` of them and all before the point: "20,063", "80.1", "0.00001"."""
    if not math.isfinite(value):
        return str(value)
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def times(ratio: float) -> str:
    """How many times as much something is: "227 times", "1.3 times"."""
    return f"{number(ratio, 3 if ratio >= 10 else 2)} times"


def ago(date: str) -> str:
    """A date such as "2026-11-27T20:54:26Z" as seen from now: "5 minutes ago"; as it is where it is none."""
    try:
        seconds = time.time() - datetime.fromisoformat(date).timestamp()
    except ValueError:
        return date
    return since(seconds) if seconds >= -60 else date


def since(seconds: float) -> str:
    """Seconds since then, for people: "5 minutes ago"."""
    for name, each in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= each:
            count = int(seconds // each)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"
