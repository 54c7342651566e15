"""Curves of a run for TensorBoard and MLflow, under the names that transformers' Trainer gives them."""

import contextlib
import os
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from phicli.errors import Missing, RemoteError
from phicli.progress import Progress

NEEDED = {"none": (), "tensorboard": ("tensorboard",), "mlflow": ("mlflow",)}
INSTALL = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny sqlalchemy alembic"}
TRACKING_URI, RUN_ID, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"
EVERY, MOST = 5.0, 500  # seconds between two messages to MLflow, figures in one


class Reporter(Protocol):
    """Where a run's figures go beside the terminal."""

    def open(self, log: str | None, step: int) -> str | None:
        """Begin, or go on with the log of an interrupted run at its step. Returns the log's name, to go on with it."""

    def add(self, step: int, **figures: float) -> None:
        """loss, eval_loss, learning_rate, tokens_per_second; any of them."""

    def close(self, finished: bool) -> None: ...


def check_reporter(kind: str) -> None:
    """Raise Missing if a package is not installed that this kind of reporter needs."""
    database = ("sqlalchemy", "alembic") if kind == "mlflow" and TRACKING_URI not in os.environ else ()
    if missing := [name for name in (*NEEDED[kind], *database) if find_spec(name) is None]:
        raise Missing(f"--report-to {kind} needs {', '.join(missing)}, which is not installed",
                      hint=f"pip install {INSTALL[kind]}")


def make_reporter(kind: str, folder: Path, name: str, progress: Progress) -> Reporter:
    """folder: for what is written on this machine. name: of the run."""
    if kind == "none":
        return NoReporter()
    return TensorBoard(folder, name, progress) if kind == "tensorboard" else MLflow(folder, name, progress)


class NoReporter:
    def open(self, log: str | None, step: int) -> str | None:
        return None

    def add(self, step: int, **figures: float) -> None:
        pass

    def close(self, finished: bool) -> None:
        pass


class TensorBoard:
    """Event files in `folder`/`name`-`time`."""

    def __init__(self, folder: Path, name: str, progress: Progress):
        self.folder, self.name, self.progress = folder, name, progress

    def open(self, log: str | None, step: int) -> str | None:
        from torch.utils.tensorboard import SummaryWriter

        log = _earlier("tensorboard", log) or f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            self.writer = SummaryWriter(str(self.folder / log), purge_step=step + 1 if step else None)
        except OSError as e:
            raise Missing(f"cannot be written: {e.strerror}", where=self.folder, hint="--logging-dir") from None
        self.progress.note(f"curves: tensorboard --logdir {self.folder}")
        return f"tensorboard:{log}"

    def add(self, step: int, **figures: float) -> None:
        for name, value in figures.items():
            tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            self.writer.add_scalar(tag, value, step)

    def close(self, finished: bool) -> None:
        self.writer.close()


class MLflow:
    """A run at MLFLOW_TRACKING_URI, or in a database in `folder`. What cannot be sent later on is left out, once said.

    MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_NAME count as they do for mlflow itself.
    """

    def __init__(self, folder: Path, name: str, progress: Progress):
        self.folder, self.name, self.progress = folder, name, progress
        self.waiting: list[Any] = []
        self.sent = time.monotonic()
        self.lost = False

    def open(self, log: str | None, step: int) -> str | None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get(TRACKING_URI)
        if not uri:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise Missing(f"cannot be written: {e.strerror}", where=self.folder, hint="--logging-dir") from None
            uri = f"sqlite:///{self.folder.resolve() / 'mlflow.db'}"
        try:
            self.client = MlflowClient(uri)
            self.run = _earlier("mlflow", log) or os.environ.get(RUN_ID) or self._new_run()
        except Exception as e:  # whatever a plugin for a tracking server raises
            raise RemoteError(f"MLflow: {_first_line(e)}", where=uri, hint="--report-to none") from None
        self.progress.note(f"curves: mlflow ui --backend-store-uri {uri}" if TRACKING_URI not in os.environ else
                           f"curves: MLflow run {self.run} at {uri}")
        return f"mlflow:{self.run}"

    def _new_run(self) -> str:
        name = os.environ.get(EXPERIMENT, "phicli")
        known = self.client.get_experiment_by_name(name)
        where = None if TRACKING_URI in os.environ else (self.folder.resolve() / "artifacts").as_uri()
        ident = known.experiment_id if known else self.client.create_experiment(name, artifact_location=where)
        return self.client.create_run(ident, run_name=self.name).info.run_id

    def add(self, step: int, **figures: float) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.waiting += [Metric(name, value, now, step) for name, value in figures.items()]
        if time.monotonic() - self.sent > EVERY or len(self.waiting) > MOST:
            self._send()

    def _send(self) -> None:
        self.sent = time.monotonic()
        try:
            if self.waiting and not self.lost:
                self.client.log_batch(self.run, metrics=self.waiting)
        except Exception as e:
            self.lost = True
            self.progress.warn(f"MLflow takes no more figures, training goes on without: {_first_line(e)}")
        self.waiting = []

    def close(self, finished: bool) -> None:
        self._send()
        if self.run != os.environ.get(RUN_ID):
            with contextlib.suppress(Exception):
                self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


def _earlier(kind: str, log: str | None) -> str | None:
    """The name of an interrupted run's log, if it is of this kind; a plain name, as it comes from a file."""
    name = (log or "").removeprefix(f"{kind}:")
    return name if name != log and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
