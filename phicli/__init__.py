"""phicli: the Microsoft Olive lab as a Python library and a command line.

    from phicli import quantize, finetune, optimize, Session

    base = quantize("tiny", samples=32).folder

Importing it loads no other library and changes nothing of the process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phicli.version import __version__

if TYPE_CHECKING:
    from phicli.api import (
        benchmark,
        deploy,
        evaluate,
        export_as,
        finetune,
        gate,
        inspect,
        merge,
        optimize,
        quantize,
        report,
        run_workflow,
        search,
        serve,
        upload,
        verify,
    )
    from phicli.config import (
        BenchmarkConfig,
        ChatConfig,
        DeployConfig,
        EvaluateConfig,
        ExportConfig,
        FinetuneConfig,
        GateConfig,
        InspectConfig,
        MergeConfig,
        OptimizeConfig,
        QuantizeConfig,
        ServeConfig,
        UploadConfig,
        WorkspaceConfig,
    )
    from phicli.errors import BadInput, Missing, PhicliError, RemoteError, UsageError
    from phicli.inference.answer import Answer
    from phicli.inference.conversation import Conversation
    from phicli.inference.engine import Busy, Engine, Finish, Grammar, Piece, Request
    from phicli.inference.sampling import Sampling
    from phicli.inference.session import Session
    from phicli.workflow.plan import StageResult

_HOME = {
    "phicli.api": ("inspect", "quantize", "finetune", "merge", "optimize", "export_as", "evaluate", "benchmark",
                   "gate", "run_workflow", "search", "report", "verify", "serve", "upload", "deploy"),
    "phicli.config": ("InspectConfig", "QuantizeConfig", "FinetuneConfig", "MergeConfig", "OptimizeConfig",
                      "ExportConfig", "ChatConfig", "EvaluateConfig", "BenchmarkConfig", "GateConfig",
                      "ServeConfig", "UploadConfig", "DeployConfig", "WorkspaceConfig"),
    "phicli.inference.session": ("Session",),
    "phicli.inference.sampling": ("Sampling",),
    "phicli.inference.conversation": ("Conversation", "Answer"),
    "phicli.inference.engine": ("Engine", "Request", "Piece", "Finish", "Grammar", "Busy"),
    "phicli.workflow.plan": ("StageResult",),
    "phicli.errors": ("PhicliError", "UsageError", "BadInput", "Missing", "RemoteError"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["Answer", "BadInput", "BenchmarkConfig", "Busy", "ChatConfig", "Conversation", "DeployConfig", "Engine",
           "EvaluateConfig", "ExportConfig", "FinetuneConfig", "Finish", "GateConfig", "Grammar", "InspectConfig",
           "MergeConfig", "Missing", "OptimizeConfig", "PhicliError", "Piece", "QuantizeConfig", "RemoteError",
           "Request", "Sampling", "ServeConfig", "Session", "StageResult", "UploadConfig", "UsageError",
           "WorkspaceConfig", "__version__", "benchmark", "deploy", "evaluate", "export_as", "finetune", "gate",
           "inspect", "merge", "optimize", "quantize", "report", "run_workflow", "search", "serve", "upload",
           "verify"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'phicli' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
