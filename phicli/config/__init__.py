"""What can be set: one frozen dataclass a step, and the layers that their values come from."""

from phicli.config.azure import UploadConfig, WorkspaceConfig
from phicli.config.commands import ChatConfig, ServeConfig
from phicli.config.deploy import DeployConfig
from phicli.config.exporting import ExportConfig, MergeConfig
from phicli.config.layers import Settings, Value
from phicli.config.measuring import BenchmarkConfig, GateConfig
from phicli.config.setting import Setting, StepConfig
from phicli.config.steps import EvaluateConfig, FinetuneConfig, InspectConfig, OptimizeConfig, QuantizeConfig

__all__ = ["BenchmarkConfig", "ChatConfig", "DeployConfig", "EvaluateConfig", "ExportConfig", "FinetuneConfig",
           "GateConfig", "InspectConfig", "MergeConfig", "OptimizeConfig", "QuantizeConfig", "ServeConfig", "Setting",
           "Settings", "StepConfig", "UploadConfig", "Value", "WorkspaceConfig"]
