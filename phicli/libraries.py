"""How the libraries that we stand on behave while we use them: quiet, without telemetry, without the network.

Nothing of it outlasts the work: a program that imports phicli finds its own environment, its hub and its logging as
they were. What a user has set in the environment holds, except that telemetry is never turned on by default.
"""

import contextlib
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

OFFLINE, OFFLINE_TOO = "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"  # as huggingface_hub reads them
# Most are read when a library is imported, which steps do in the middle of their work.
WHILE_WORKING = {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Waiting threads sleep instead of spinning: a few percent slower alone, twice as fast with another program beside.
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_MODULE_LOADING": "LAZY",  # as torch sets it too
    OFFLINE: "1",  # `online` lifts it for what a user names
}
LEFT_BEHIND = ("TORCHINDUCTOR_CACHE_DIR", "ORT_LIB_PATH")  # by torch, by onnxruntime-genai
_lock = threading.RLock()
_depth = 0
_before: dict[str, Any] = {}


@contextlib.contextmanager
def subdued() -> Iterator[None]:
    """While the block runs: no telemetry, no network, only errors in logs. Also a decorator; may be nested."""
    global _depth
    with _lock:
        if not _depth:
            _before["environment"] = {name: os.environ.get(name) for name in (*WHILE_WORKING, *LEFT_BEHIND)}
            _before["verbosity"] = _verbosity()
            _before["logging"] = (logging.root.level, logging.root.handlers[:])
            for name, value in WHILE_WORKING.items():
                os.environ.setdefault(name, value)
            _set_hub_offline(True)
            _set_verbosity(_before["verbosity"] and 40)
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # to peft, not to a user
            _before["warnings"] = warnings.filters[0]
            if not logging.root.handlers:  # else a module of onnxruntime's shows all that it does, once it is imported
                logging.root.addHandler(logging.lastResort or logging.NullHandler())
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                if _before.pop("frozen", False):
                    gc.unfreeze()
                _restore(_before["environment"])
                _set_hub_offline(user_is_offline())
                _set_verbosity(_before["verbosity"] or 30)
                with contextlib.suppress(ValueError):  # the program has put its own filters in place of all
                    warnings.filters.remove(_before["warnings"])  # type: ignore[attr-defined]
                level, logging.root.handlers[:] = _before["logging"]  # genai's builder sets up its own
                logging.root.setLevel(level)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """While the block runs, these variables are set, where the user has not set them otherwise."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        _restore(before)


def spare_garbage_collection() -> None:
    """Leave out of garbage collection what has been imported, a million objects, until `subdued` ends."""
    with _lock:
        if _depth and not gc.get_freeze_count():  # a program's own frozen objects could not be told from ours
            gc.freeze()
            _before["frozen"] = True


@contextlib.contextmanager
def online() -> Iterator[None]:
    """While the block runs, the hub is asked, as far as the user's own variables let it (see `offline_by`)."""
    with _lock:
        _restore({OFFLINE: _own_offline()})
        _set_hub_offline(user_is_offline())
    try:
        yield
    finally:
        with _lock:
            if _depth:
                os.environ.setdefault(OFFLINE, WHILE_WORKING[OFFLINE])
                _set_hub_offline(True)


def _restore(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def user_is_offline() -> bool:
    """Whether a variable of the user's own keeps everything away from the hub."""
    return offline_by() is not None


def offline_by() -> str | None:
    """The variable that does: HF_HUB_OFFLINE, where it is not set TRANSFORMERS_OFFLINE; None: neither."""
    own = _own_offline()
    name, value = (OFFLINE, own) if own else (OFFLINE_TOO, os.environ.get(OFFLINE_TOO) or "")
    return name if value.upper() in ("1", "ON", "YES", "TRUE") else None


def _own_offline() -> str | None:
    with _lock:
        own: str | None = _before["environment"][OFFLINE] if _depth else os.environ.get(OFFLINE)
        return own


def _set_hub_offline(value: bool) -> None:
    """huggingface_hub reads the environment once, at its import."""
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _verbosity() -> int | None:
    theirs = sys.modules.get("transformers.utils.logging")
    return theirs.get_verbosity() if theirs else None  # type: ignore[attr-defined]


def _set_verbosity(value: int | None) -> None:
    theirs = sys.modules.get("transformers.utils.logging")
    if theirs and value:
        theirs.set_verbosity(value)  # type: ignore[attr-defined]
