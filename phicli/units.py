"""Figures for people."""


def size(count: float) -> str:
    """Bytes for people: "2.4 GB", powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: "8.3 s", "2 min 05 s"."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def ago(seconds: float) -> str:
    """Seconds since then, for people: "5 minutes ago"."""
    for name, each in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= each:
            count = int(seconds // each)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"
