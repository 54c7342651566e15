"""The packages of the extra `serve`."""

from importlib.util import find_spec

from phicli.errors import Missing

PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client", "llguidance")


def check_packages() -> None:
    """Raises Missing: one of them is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise Missing(f"not installed: {', '.join(missing)}", hint="pip install 'phicli[serve]'")
