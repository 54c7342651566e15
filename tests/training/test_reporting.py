"""Curves for TensorBoard and MLflow, read back with their own readers."""

import os
import sys
from pathlib import Path

import pytest
from test_curve import OVERFIT, ROWS
from test_training import Recorder

from phicli.errors import Missing, RemoteError
from phicli.progress import SILENT
from phicli.training.checkpoint import Checkpoint
from phicli.training.reporting import check_reporter, make_reporter
from phicli.training.training import Trainer

STEPS = list(range(1, 31))


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def interrupted_and_ended(fresh, kind: str, folder: Path, tmp_path) -> list[list[float]]:
    """Train with a Ctrl-C after step 10, and on; the curve."""
    def trainer(progress):
        reporter = make_reporter(kind, folder, "travel", progress)
        return Trainer(fresh(), ROWS, OVERFIT, Checkpoint(tmp_path / "c", {}), progress, reporter)

    with pytest.raises(KeyboardInterrupt):
        trainer(Recorder(stop_after=10)).run()
    return trainer(Recorder()).run()["curve"]


def test_tensorboard(fresh, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = interrupted_and_ended(fresh, "tensorboard", tmp_path / "logs", tmp_path)
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.startswith("travel-")
    events = EventAccumulator(str(run)).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/learning_rate", "train/tokens_per_second", "eval/loss"}
    assert [e.step for e in events.Scalars("train/loss")] == STEPS
    assert [[e.step, e.value] for e in events.Scalars("eval/loss")] == [
        [step, pytest.approx(loss, rel=1e-6)] for step, _, loss in curve]


def test_mlflow(fresh, tmp_path):
    from mlflow.tracking import MlflowClient

    curve = interrupted_and_ended(fresh, "mlflow", tmp_path / "logs", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/logs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("phicli").experiment_id])
    assert (run.info.run_name, run.info.status) == ("travel", "FINISHED")
    assert set(run.data.metrics) == {"loss", "eval_loss", "learning_rate", "tokens_per_second"}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == STEPS
    assert [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, "eval_loss")] == [
        [step, loss] for step, _, loss in curve]


def test_mlflow_where_the_environment_says(tmp_path, monkeypatch):
    """As in a job of Azure ML: the tracking server and the run are given, and the run is not ended."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/theirs.db")
    given = client.create_run(client.create_experiment("job")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    reporter = make_reporter("mlflow", tmp_path / "logs", "travel", SILENT)
    reporter.open(None, 0)
    reporter.add(1, loss=2.5)
    reporter.close(True)
    run = client.get_run(given)
    assert (run.data.metrics, run.info.status) == ({"loss": 2.5}, "RUNNING")
    assert not (tmp_path / "logs").exists()


def test_a_tracking_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        make_reporter("mlflow", tmp_path, "travel", SILENT).open(None, 0)


def test_figures_that_cannot_be_sent_are_said_once_and_left_out(tmp_path):
    recorder = Recorder()
    reporter = make_reporter("mlflow", tmp_path, "travel", recorder)
    reporter.open("mlflow:nosuchrun", 3)
    for step in range(2000):
        reporter.add(step, loss=1.0)
    reporter.close(True)
    assert [text[:33] for text in recorder.said[1:]] == ["MLflow takes no more figures, tra"]


@pytest.mark.parametrize(("kind", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")])
def test_a_package_that_is_not_installed(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package.split("-")[0], None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    sys.modules.pop(package.split("-")[0])
    with pytest.raises(Missing, match=f"--report-to {kind} needs {kind}") as error:
        check_reporter(kind)
    assert str(error.value.hint).startswith(f"pip install {package}")
    check_reporter("none")


def test_a_logs_name_from_a_damaged_file_leads_nowhere_else(tmp_path):
    reporter = make_reporter("tensorboard", tmp_path / "logs", "travel", SILENT)
    assert reporter.open("tensorboard:../../elsewhere", 1).startswith("tensorboard:travel-")
    reporter.close(True)
    assert [p.name for p in tmp_path.iterdir()] == ["logs"]
