"""The steps as a program or a notebook calls them: a model and the settings that differ from their defaults.

Each function takes the settings of the command of the same name (`docs/python.md`, or `help(QuantizeConfig)`), either
as keywords or as one configuration object. Neither phicli.toml nor the environment is read. Errors are exceptions
(`phicli.errors`); nothing exits, nothing of the process is changed for longer than the call.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from phicli.config import (
    BenchmarkConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    GateConfig,
    InspectConfig,
    MergeConfig,
    OptimizeConfig,
    QuantizeConfig,
    ServeConfig,
    StepConfig,
)
from phicli.config.azure import TransferConfig, UploadConfig, WorkspaceConfig
from phicli.config.commands import WorkflowConfig
from phicli.config.deploy import DeployConfig
from phicli.config.measuring import ReportConfig, SearchConfig
from phicli.config.setting import settings_of
from phicli.dataset.in_memory import as_named
from phicli.errors import UsageError
from phicli.progress import Progress, automatic
from phicli.workflow.plan import StageResult

if TYPE_CHECKING:
    from phicli.azure.endpoint import Deployed
    from phicli.azure.register import Uploaded
    from phicli.azure.target import Target
    from phicli.steps.gate import GateResult
    from phicli.steps.verify import Verified

Config = TypeVar("Config", bound=StepConfig)
Function = TypeVar("Function", bound=Callable[..., Any])
ROWS = ("data", "eval_data", "own_rows")  # settings that name files of rows


def _takes_rows(function: Function) -> Function:
    """A function to which rows may be given as they are in memory, in place of the names of files."""

    @functools.wraps(function)
    def with_files(*given: Any, **settings: Any) -> Any:
        with ExitStack() as files:
            def named(value: Any) -> Any:
                return files.enter_context(as_named(value))

            return function(*map(named, given), **{k: named(v) if k in ROWS else v for k, v in settings.items()})

    return with_files  # type: ignore[return-value]


@_takes_rows
def inspect(data: str | Path | InspectConfig | None = None, *, progress: Progress | None = None,
            **settings: Any) -> dict[str, Any]:
    """What is in a file of rows, and what may be wrong with it; see `phicli.steps.inspect.inspect_file`."""
    from phicli.steps.inspect import inspect_file

    return inspect_file(_config(InspectConfig, "data", data, settings), _told(progress))


@_takes_rows
def quantize(model: str | Path | QuantizeConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> StageResult:
    """Quantize a model's decoder layers to int4, AWQ (Lin et al., 2023, arXiv:2306.00978) by default.

    Args:
        model: Hugging Face id, folder, or "tiny" (built in); or all settings as one object.
        progress: where it is reported; None shows it in a notebook and is silent elsewhere.
        settings: fields of `QuantizeConfig`.

    Returns:
        the folder with the AWQ checkpoint and its manifest; what is up to date is not made again.

    Raises:
        PhicliError: as `phicli.steps.quantize.quantize` does.
    """
    from phicli.steps.quantize import quantize as step

    return step(_config(QuantizeConfig, "model", model, settings), _told(progress))


@_takes_rows
def finetune(model: str | Path | FinetuneConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> StageResult:
    """Train an adapter, LoRA (Hu et al., 2021, arXiv:2106.09685) by default, on the quantized model under the root.

    As `quantize`, with the fields of `FinetuneConfig`; gives the folder of the PEFT adapter.
    """
    from phicli.steps.finetune import finetune as step

    return step(_config(FinetuneConfig, "model", model, settings), _told(progress))


@_takes_rows
def merge(model: str | Path | MergeConfig | None = None, *, progress: Progress | None = None,
          **settings: Any) -> StageResult:
    """Put an adapter into the weights of a model, unquantized or int4.

    As `quantize`, with the fields of `MergeConfig`; gives the folder of a Hugging Face model.
    """
    from phicli.steps.merge import merge as step

    return step(_config(MergeConfig, "model", model, settings), _told(progress))


def optimize(model: str | Path | OptimizeConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> StageResult:
    """Build the ONNX model that `Session` runs, with the adapters beside it.

    As `quantize`, with the fields of `OptimizeConfig`; gives the folder of the ONNX model.
    """
    from phicli.steps.optimize import optimize as step

    return step(_config(OptimizeConfig, "model", model, settings), _told(progress))


def export_as(model: str | Path | ExportConfig | None = None, *, progress: Progress | None = None,
              **settings: Any) -> Path:
    """Write a model or an adapter as another program takes it.

    As `quantize`, with the fields of `ExportConfig`; gives the file or folder.
    """
    from phicli.steps.export import export as step

    return step(_config(ExportConfig, "model", model, settings), _told(progress))


@_takes_rows
def evaluate(model: str | Path | EvaluateConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> dict[str, Any]:
    """Measure every stage under the root, or those named as `stages`, on held-out rows or a text.

    As `quantize`, with the fields of `EvaluateConfig`; gives the document that is written to ROOT/evaluation.json.
    """
    from phicli.steps.evaluate import evaluate as step

    return step(_config(EvaluateConfig, "model", model, settings), _told(progress))


def benchmark(model: str | Path | BenchmarkConfig | None = None, *, progress: Progress | None = None,
              **settings: Any) -> dict[str, Any]:
    """Measure how fast the ONNX model is, beside other libraries if they are named.

    As `quantize`, with the fields of `BenchmarkConfig`; gives the document that is written to ROOT/benchmark.json.
    """
    from phicli.steps.benchmark import benchmark as step

    return step(_config(BenchmarkConfig, "model", model, settings), _told(progress))


@_takes_rows
def gate(model: str | Path | GateConfig | None = None, *, progress: Progress | None = None,
         **settings: Any) -> "GateResult":
    """Check what is under the root against limits and the last accepted build.

    As `quantize`, with the fields of `GateConfig`; gives all checks, `failed` has those that did not pass.
    """
    from phicli.steps.gate import gate as step

    return step(_config(GateConfig, "model", model, settings), _told(progress))


def run_workflow(workflow: str | Path | WorkflowConfig | None = None, *, progress: Progress | None = None,
                 **settings: Any) -> StageResult:
    """Run passes of Olive's, of a workflow file or by name (`passes`); see `phicli.steps.passes.run_workflow`."""
    from phicli.steps.passes import run_workflow as step

    return step(_config(WorkflowConfig, "workflow", workflow, settings), _told(progress))


@_takes_rows
def search(model: str | Path | SearchConfig | None = None, *, quantize: QuantizeConfig | None = None,
           finetune: FinetuneConfig | None = None, optimize: OptimizeConfig | None = None,
           evaluate: EvaluateConfig | None = None, progress: Progress | None = None, **settings: Any) -> dict[str, Any]:
    """Search settings within limits, and build the best model; see `phicli.steps.search.search`.

    quantize, finetune, optimize, evaluate: the settings of these steps that are not searched.
    """
    from phicli.steps.search import search as step
    from phicli.steps.trials import AXES, Steps

    texts = {name: tuple(map(str, values)) for name, values in settings.items() if name in AXES}
    config = _config(SearchConfig, "model", model, settings | texts)
    shared: dict[str, Any] = {"model": config.model, "root": config.root}
    steps = Steps(quantize or QuantizeConfig(**shared, device=config.device, seed=config.seed),
                  finetune or FinetuneConfig(**shared, data=config.data, device=config.device, seed=config.seed),
                  optimize or OptimizeConfig(**shared, device=config.device),
                  evaluate or EvaluateConfig(**shared, eval_data=config.eval_data, rows=config.rows,
                                             device=config.device))
    return step(config, steps, _told(progress))


def report(model: str | Path | ReportConfig | None = None, **settings: Any) -> Path:
    """Write one page about all that was made, and return its file; see `phicli.steps.report.report`."""
    from phicli.steps.report import report as step

    return step(_config(ReportConfig, "model", model, settings))


def verify(place: str | Path, inputs: Sequence[str | Path] = (), *,
           progress: Progress | None = None) -> "list[Verified]":
    """What a result, or all under a root, was made from, each byte compared; see `phicli.steps.verify.verify`."""
    from phicli.steps.verify import verify as step

    return step(Path(place), [Path(path) for path in inputs], _told(progress))


def serve(model: str | Path | ServeConfig | None = None, **settings: Any) -> None:
    """Serve the ONNX model and its adapters over HTTP until a signal, in the main thread.

    As `quantize`, with the fields of `ServeConfig`; `phicli.serving.server.opened` has the parts.
    """
    from phicli.serving.needed import check_packages

    check_packages()
    from phicli.serving.server import opened

    with opened(_config(ServeConfig, "model", model, settings)) as ready:
        ready.run()


def upload(model: str | Path | UploadConfig | None = None, *, workspace: WorkspaceConfig,
           tags: Mapping[str, str] | None = None, dry_run: bool = False, transfer: TransferConfig | None = None,
           progress: Progress | None = None, **settings: Any) -> "Uploaded":
    """Upload the ONNX model to Azure ML and register it.

    As `quantize`, with the fields of `UploadConfig`; see `phicli.azure.register.upload_model`.
    """
    from phicli.steps.upload import upload as step

    return step(_config(UploadConfig, "model", model, settings), _target(workspace), transfer or TransferConfig(),
                _told(progress), tags=tags, dry_run=dry_run)


def deploy(model: str | Path | DeployConfig | None = None, *, workspace: WorkspaceConfig | None = None,
           transfer: TransferConfig | None = None, progress: Progress | None = None,
           **settings: Any) -> "Deployed | Path":
    """Serve the model at an endpoint of Azure ML, which costs money from then on, or write what Docker or Kubernetes
    take and return its path.

    As `quantize`, with the fields of `DeployConfig`. workspace: needed for the endpoint only.
    """
    from phicli.steps.deploy import deploy_endpoint, write_deployment

    config = _config(DeployConfig, "model", model, settings)
    if config.to != "azureml":
        return write_deployment(config, _told(progress))
    return deploy_endpoint(config, _target(workspace or WorkspaceConfig()), transfer or TransferConfig(),
                           _told(progress))


def _target(workspace: WorkspaceConfig) -> "Target":
    from phicli.azure.target import Target

    lacking = [name for name, value in asdict(workspace).items() if not value]
    if lacking:
        raise UsageError(f"which Azure ML workspace? {' and '.join(lacking)} not set", where="workspace")
    return Target(**asdict(workspace))


def _config(kind: type[Config], first: str, given: Any, settings: dict[str, Any]) -> Config:
    """The settings object that a call means. Raises UsageError: a setting that there is not, or both ways at once."""
    from phicli.hub.roots import check_default_root

    if isinstance(given, StepConfig):
        if not isinstance(given, kind) or settings:
            raise UsageError(f"takes a {kind.__name__} alone, or settings as keywords")
        check_default_root(given)
        return given
    if given is not None:
        settings = {first: given, **settings}
    known = settings_of(kind)
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        options = {flag.split("/")[0].lstrip("-").replace("-", "_"): name for name, setting in known.items()
                   for flag in setting.flags}
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = options.get(unknown[0]) or (near[0] if near else None)
        raise UsageError(f"no setting {unknown[0]!r}; there are: {', '.join(known)}",
                         hint=f"did you mean {meant}?" if meant else None)
    config = kind(**settings)
    check_default_root(config)
    return config


def _told(progress: Progress | None) -> Progress:
    """What a program gave, or `automatic()`. Raises UsageError: it is no `Progress`, as `print` is none."""
    if progress is None:
        return automatic()
    if any(not callable(getattr(progress, method, None)) for method in ("task", "note", "warn")):
        raise UsageError(f"needs an object with the methods task, note and warn, not {repr(progress)[:40]}",
                         where="progress", hint="progress=phicli.progress.Bars(), or an object as in docs/python.md")
    return progress
