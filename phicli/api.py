"""The steps as a program or a notebook calls them: a model and the settings that differ from their defaults.

Each function takes the settings of the command of the same name (`docs/python.md`, or `help(QuantizeConfig)`), either
as keywords or as one configuration object. Neither phicli.toml nor the environment is read. Errors are exceptions
(`phicli.errors`); nothing exits, nothing of the process is changed for longer than the call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phicli.arguments import config_of, progress_of, takes_rows
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
)
from phicli.config.azure import TransferConfig, UploadConfig, WorkspaceConfig
from phicli.config.commands import WorkflowConfig
from phicli.config.deploy import DeployConfig
from phicli.config.measuring import ReportConfig, SearchConfig
from phicli.errors import UsageError
from phicli.progress import Progress
from phicli.workflow.plan import StageResult

if TYPE_CHECKING:
    from phicli.azure.endpoint import Deployed
    from phicli.azure.register import Uploaded
    from phicli.azure.target import Target
    from phicli.steps.gate import GateResult
    from phicli.steps.verify import Verified


@takes_rows
def inspect(data: str | Path | InspectConfig | None = None, *, progress: Progress | None = None,
            **settings: Any) -> dict[str, Any]:
    """What is in a file of rows, and what may be wrong with it; see `phicli.steps.inspect.inspect_file`."""
    from phicli.steps.inspect import inspect_file

    return inspect_file(config_of(InspectConfig, "data", data, settings), progress_of(progress))


@takes_rows
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

    return step(config_of(QuantizeConfig, "model", model, settings), progress_of(progress))


@takes_rows
def finetune(model: str | Path | FinetuneConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> StageResult:
    """Train an adapter, LoRA (Hu et al., 2021, arXiv:2106.09685) by default, on the quantized model under the root.

    As `quantize`, with the fields of `FinetuneConfig`; gives the folder of the PEFT adapter.
    """
    from phicli.steps.finetune import finetune as step

    return step(config_of(FinetuneConfig, "model", model, settings), progress_of(progress))


@takes_rows
def merge(model: str | Path | MergeConfig | None = None, *, progress: Progress | None = None,
          **settings: Any) -> StageResult:
    """Put an adapter into the weights of a model, unquantized or int4.

    As `quantize`, with the fields of `MergeConfig`; gives the folder of a Hugging Face model.
    """
    from phicli.steps.merge import merge as step

    return step(config_of(MergeConfig, "model", model, settings), progress_of(progress))


def optimize(model: str | Path | OptimizeConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> StageResult:
    """Build the ONNX model that `Session` runs, with the adapters beside it.

    As `quantize`, with the fields of `OptimizeConfig`; gives the folder of the ONNX model.
    """
    from phicli.steps.optimize import optimize as step

    return step(config_of(OptimizeConfig, "model", model, settings), progress_of(progress))


def export_as(model: str | Path | ExportConfig | None = None, *, progress: Progress | None = None,
              **settings: Any) -> Path:
    """Write a model or an adapter as another program takes it.

    As `quantize`, with the fields of `ExportConfig`; gives the file or folder.
    """
    from phicli.steps.export import export as step

    return step(config_of(ExportConfig, "model", model, settings), progress_of(progress))


@takes_rows
def evaluate(model: str | Path | EvaluateConfig | None = None, *, progress: Progress | None = None,
             **settings: Any) -> dict[str, Any]:
    """Measure every stage under the root, or those named as `stages`, on held-out rows or a text.

    As `quantize`, with the fields of `EvaluateConfig`; gives the document that is written to ROOT/evaluation.json.
    """
    from phicli.steps.evaluate import evaluate as step

    return step(config_of(EvaluateConfig, "model", model, settings), progress_of(progress))


def benchmark(model: str | Path | BenchmarkConfig | None = None, *, progress: Progress | None = None,
              **settings: Any) -> dict[str, Any]:
    """Measure how fast the ONNX model is, beside other libraries if they are named.

    As `quantize`, with the fields of `BenchmarkConfig`; gives the document that is written to ROOT/benchmark.json.
    """
    from phicli.steps.benchmark import benchmark as step

    return step(config_of(BenchmarkConfig, "model", model, settings), progress_of(progress))


@takes_rows
def gate(model: str | Path | GateConfig | None = None, *, progress: Progress | None = None,
         **settings: Any) -> "GateResult":
    """Check what is under the root against limits and the last accepted build.

    As `quantize`, with the fields of `GateConfig`; gives all checks, `failed` has those that did not pass.
    """
    from phicli.steps.gate import gate as step

    return step(config_of(GateConfig, "model", model, settings), progress_of(progress))


def run_workflow(workflow: str | Path | WorkflowConfig | None = None, *, progress: Progress | None = None,
                 **settings: Any) -> StageResult:
    """Run passes of Olive's, of a workflow file or by name (`passes`); see `phicli.steps.passes.run_workflow`."""
    from phicli.steps.passes import run_workflow as step

    return step(config_of(WorkflowConfig, "workflow", workflow, settings), progress_of(progress))


@takes_rows
def search(model: str | Path | SearchConfig | None = None, *, quantize: QuantizeConfig | None = None,
           finetune: FinetuneConfig | None = None, optimize: OptimizeConfig | None = None,
           evaluate: EvaluateConfig | None = None, progress: Progress | None = None, **settings: Any) -> dict[str, Any]:
    """Search settings within limits, and build the best model; see `phicli.steps.search.search`.

    quantize, finetune, optimize, evaluate: the settings of these steps that are not searched.
    """
    from phicli.steps.search import search as step
    from phicli.steps.trials import AXES, Steps

    texts = {name: tuple(map(str, values)) for name, values in settings.items() if name in AXES}
    config = config_of(SearchConfig, "model", model, settings | texts)
    shared: dict[str, Any] = {"model": config.model, "root": config.root}
    steps = Steps(quantize or QuantizeConfig(**shared, device=config.device, seed=config.seed),
                  finetune or FinetuneConfig(**shared, data=config.data, device=config.device, seed=config.seed),
                  optimize or OptimizeConfig(**shared, device=config.device),
                  evaluate or EvaluateConfig(**shared, eval_data=config.eval_data, rows=config.rows,
                                             device=config.device))
    return step(config, steps, progress_of(progress))


def report(model: str | Path | ReportConfig | None = None, **settings: Any) -> Path:
    """Write one page about all that was made, and return its file; see `phicli.steps.report.report`."""
    from phicli.steps.report import report as step

    return step(config_of(ReportConfig, "model", model, settings))


def verify(place: str | Path, inputs: Sequence[str | Path] = (), *,
           progress: Progress | None = None) -> "list[Verified]":
    """What a result, or all under a root, was made from, each byte compared; see `phicli.steps.verify.verify`."""
    from phicli.steps.verify import verify as step

    return step(Path(place), [Path(path) for path in inputs], progress_of(progress))


def serve(model: str | Path | ServeConfig | None = None, **settings: Any) -> None:
    """Serve the ONNX model and its adapters over HTTP until a signal, in the main thread.

    As `quantize`, with the fields of `ServeConfig`; `phicli.serving.server.opened` has the parts.
    """
    from phicli.serving.needed import check_packages

    check_packages()
    from phicli.serving.server import opened

    with opened(config_of(ServeConfig, "model", model, settings)) as ready:
        ready.run()


def upload(model: str | Path | UploadConfig | None = None, *, workspace: WorkspaceConfig,
           tags: Mapping[str, str] | None = None, dry_run: bool = False, transfer: TransferConfig | None = None,
           progress: Progress | None = None, **settings: Any) -> "Uploaded":
    """Upload the ONNX model to Azure ML and register it.

    As `quantize`, with the fields of `UploadConfig`; see `phicli.azure.register.upload_model`.
    """
    from phicli.steps.upload import upload as step

    return step(config_of(UploadConfig, "model", model, settings), _target(workspace), transfer or TransferConfig(),
                progress_of(progress), tags=tags, dry_run=dry_run)


def deploy(model: str | Path | DeployConfig | None = None, *, workspace: WorkspaceConfig | None = None,
           transfer: TransferConfig | None = None, progress: Progress | None = None,
           **settings: Any) -> "Deployed | Path":
    """Serve the model at an endpoint of Azure ML, which costs money from then on, or write what Docker or Kubernetes
    take and return its path.

    As `quantize`, with the fields of `DeployConfig`. workspace: needed for the endpoint only.
    """
    from phicli.steps.deploy import deploy_endpoint, write_deployment

    config = config_of(DeployConfig, "model", model, settings)
    if config.to != "azureml":
        return write_deployment(config, progress_of(progress))
    return deploy_endpoint(config, _target(workspace or WorkspaceConfig()), transfer or TransferConfig(),
                           progress_of(progress))


def _target(workspace: WorkspaceConfig) -> "Target":
    from phicli.azure.target import Target

    lacking = [name for name, value in asdict(workspace).items() if not value]
    if lacking:
        raise UsageError(f"which Azure ML workspace? {' and '.join(lacking)} not set", where="workspace")
    return Target(**asdict(workspace))
