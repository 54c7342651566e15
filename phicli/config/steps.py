"""The settings of each step: default, help, choices and range of every one.

Flags, phicli.toml, environment, `phicli config`, manifests, estimates and Olive's passes take them from here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from phicli.config import shared
from phicli.config.setting import StepConfig, again, setting

QUANTIZE_ALGORITHMS = ("awq", "gptq", "rtn", "kquant", "quarot")
FINETUNE_METHODS = ("lora", "dora", "loftq", "loha", "lokr")


@dataclass(frozen=True)
class OfModel(StepConfig):
    """What every step has: a model, and the folder of all that is made of it."""

    model: str = shared.model()
    root: str | None = shared.root()
    root_chosen: ClassVar[bool]  # of an object: the root was given, and is not only the model's usual one

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "root_chosen", self.root is not None)
        if self.root is None:
            object.__setattr__(self, "root", shared.default_root(self.model))

    @property
    def root_folder(self) -> Path:
        """The folder of all results."""
        return Path(str(self.root))


@dataclass(frozen=True)
class InspectConfig(OfModel):
    """Settings of `phicli inspect`."""

    STEP: ClassVar[str] = "inspect"

    data: str = shared.data(argument=True)
    text_template: str = shared.text_template()
    max_tokens: int = setting(1024, "Length limit of a row in tokens", minimum=1)
    rows: int = setting(3, "Rows to show", minimum=0)
    fix: str | None = setting(None, "Write a clean copy: restore what can be restored, leave out the rest", once=True,
                              metavar="OUT", recorded=False, path=True)


@dataclass(frozen=True)
class QuantizeConfig(OfModel):
    """Settings of `phicli quantize`."""

    STEP: ClassVar[str] = "quantize"

    algorithm: str = setting("awq", "Quantization algorithm", choices=QUANTIZE_ALGORITHMS, flags=("--algorithm", "-a"))
    implementation: str = setting("phicli", "Which AWQ runs", choices=("phicli", "autoawq"))
    bits: int = setting(4, "Bits of a weight (AWQ: 4)", minimum=2)
    group_size: int = setting(128, "Inputs that share one scale", minimum=16)
    symmetric: bool = setting(False, "Zero point fixed in the middle", flags=("--symmetric/--asymmetric",))
    skip: tuple[str, ...] = setting((), "Parts of module names to leave in float")
    rounding: str = setting("gptq", "Rounding: to nearest, or with GPTQ's error feedback", choices=("gptq", "nearest"))
    distill: int = setting(0, "Steps of training integers and scales on the original's output afterwards", minimum=0)
    calibration: str | None = setting(None, "Calibration file, JSONL or plain text [default: built-in text]",
                                      recorded=False, path=True)
    text_template: str = shared.text_template()
    samples: int = setting(128, "Calibration sequences", minimum=1)
    seq_len: int = setting(512, "Tokens of a calibration sequence", minimum=8)
    plan: str | None = setting(None, "File of AWQ scales and ranges, saved by --save-plan, to take; no search",
                               recorded=False, path=True)
    save_plan: str | None = setting(None, "File to save AWQ's scales and ranges to", recorded=False, path=True)
    device: str = shared.device()
    seed: int = shared.seed()
    output: str | None = shared.output()
    force: bool = shared.force()


@dataclass(frozen=True)
class FinetuneConfig(OfModel):
    """Settings of `phicli finetune`."""

    STEP: ClassVar[str] = "finetune"

    base: str | None = setting(None, "Model to train on, folder or id [default: the quantized one under the root]",
                               flags=("--base", "-b"), recorded=False, path=True)
    data: str = shared.data()
    text_template: str = shared.text_template()
    name: str = setting("travel", "Name of the adapter", flags=("--name", "-n"), recorded=False)
    method: str = setting("lora", "Adapter method", choices=FINETUNE_METHODS)
    max_steps: int = setting(100, "Optimizer steps", minimum=1)
    batch_size: int = setting(8, "Rows of an optimizer step", minimum=1)
    learning_rate: float | None = setting(None, "Peak learning rate [default: from the model's width]", minimum=0)
    schedule: str = setting("linear", "How the learning rate falls after the warm-up",
                            choices=("linear", "cosine", "constant"))
    lora_r: int = setting(64, "Rank", minimum=1)
    lora_alpha: float | None = setting(None, "Scaling numerator [default: twice the rank]", minimum=0)
    lora_dropout: float = setting(0.05, "Dropout before the adapter", minimum=0, below=1)
    target_modules: tuple[str, ...] = setting(("all-linear",), "Linear layers to adapt, by name")
    seq_len: int = setting(1024, "Longest row in tokens; the rest is cut", minimum=8)
    mask_prompt: bool = setting(True, "Loss on the response only", flags=("--mask-prompt/--no-mask-prompt",))
    eval_split: float = setting(0.1, "Share of the rows held out to measure", minimum=0, below=1)
    checkpoint_steps: int = setting(20, "Steps between checkpoints", minimum=1, recorded=False)
    device: str = shared.device()
    seed: int = shared.seed()
    force: bool = shared.force()


@dataclass(frozen=True)
class OptimizeConfig(OfModel):
    """Settings of `phicli optimize`."""

    STEP: ClassVar[str] = "optimize"

    base: str | None = setting(None, "Model to build from, folder or id [default: the quantized one]",
                               flags=("--base", "-b"), recorded=False, path=True)
    adapters: tuple[str, ...] = setting((), "Adapter to put beside the model, NAME=FOLDER or a name under ROOT/ft; may "
                                        "be repeated [default: all under the root]", once=True,
                                        flags=("--adapter", "-a"), metavar="NAME=FOLDER", recorded=False)
    device: str = setting("auto", "Where the model will run: auto, cpu, cuda, dml or webgpu")
    activations: str = setting("int8", "Least precision of activations in products with int4 weights (cpu, webgpu)",
                               choices=("int8", "fp32"))
    head: str = setting("int8", "Weights of the output projection", choices=("int4", "int8", "float"))
    adapter_layout: str = setting("auto", "How adapters enter the graph; auto knows what is fastest where it will run "
                                  "(expert setting)", choices=("auto", "inputs", "resident", "fused"))
    adapter_weights: str = setting("float", "Weights of adapters that lie in the graph; int8: resident, or fused on a "
                                   "CPU (expert setting)", choices=("float", "int8"))
    cuda_graph: bool | None = setting(None, "Let genai capture a CUDA graph [default: on cuda, where adapters are in "
                                      "the graph]", flags=("--cuda-graph/--no-cuda-graph",))
    output: str | None = shared.output()
    force: bool = shared.force()


@dataclass(frozen=True)
class ChatConfig(OfModel):
    """Settings of `phicli chat`."""

    STEP: ClassVar[str] = "chat"

    path: str | None = setting(None, "Folder of the model, instead of ROOT/onnx-ao", once=True, path=True,
                               recorded=False)
    adapter: str | None = shared.adapter()
    system: str | None = setting(None, "System message")
    max_new_tokens: int = setting(256, "Longest answer in tokens", minimum=1)
    temperature: float = setting(0.0, "Sampling temperature; 0 takes the likeliest token", minimum=0)
    top_p: float = setting(0.95, "Sample from the likeliest tokens that make up this probability", above=0, maximum=1)
    top_k: int = setting(50, "Sample from this many likeliest tokens", minimum=1)
    seed: int = shared.seed()
    device: str = shared.device()
    kernels: str = shared.kernels()


@dataclass(frozen=True)
class EvaluateConfig(OfModel):
    """Settings of `phicli evaluate`."""

    STEP: ClassVar[str] = "evaluate"

    eval_data: str = shared.eval_data()
    text_template: str = shared.text_template()
    algorithm: str = again(QuantizeConfig, "algorithm")
    adapter: str | None = shared.adapter()
    rows: int | None = setting(None, "Take only that many rows [default: all]", minimum=1)
    seq_len: int = setting(1024, "Longest row in tokens; the rest is cut", minimum=8)
    device: str = shared.device()
    kernels: str = shared.kernels()
    force: bool = shared.force()


@dataclass(frozen=True)
class LabConfig(OfModel):
    """What `phicli run` and `phicli status` take as flags; the steps' other settings come from phicli.toml."""

    STEP: ClassVar[str] = "run"

    data: str = shared.data()
    eval_data: str = shared.eval_data()
    text_template: str = shared.text_template()
    name: str = again(FinetuneConfig, "name")
    algorithm: str = again(QuantizeConfig, "algorithm")
    max_steps: int = again(FinetuneConfig, "max_steps")
    device: str = shared.device()
    seed: int = shared.seed()


@dataclass(frozen=True)
class DoctorConfig(OfModel):
    """Settings of `phicli doctor`."""

    STEP: ClassVar[str] = "doctor"

    device: str = shared.device()


@dataclass(frozen=True)
class WorkspaceConfig(StepConfig):
    """Which Azure ML workspace is meant."""

    STEP: ClassVar[str] = "azure"

    workspace_name: str | None = setting(None, "Azure ML workspace")
    resource_group: str | None = setting(None, "Azure resource group")
    subscription: str | None = setting(None, "Azure subscription id")


@dataclass(frozen=True)
class UploadConfig(OfModel):
    """Settings of `phicli upload`."""

    STEP: ClassVar[str] = "upload"

    path: str | None = setting(None, "Folder to upload [default: the optimized model under the root]", once=True,
                               path=True)
    name: str = setting("ft-for-travel", "Name of the model in Azure ML")
    version: str | None = setting(None, "Version of the model [default: the next free number]")
    description: str | None = setting(None, "Description of the model")


@dataclass(frozen=True)
class TransferConfig(StepConfig):
    """How to transfer files to and from Azure, and where to keep what was downloaded."""

    STEP: ClassVar[str] = "azure"

    cache: str | None = setting(None, "Folder of downloaded models [default: in the user's cache folder]", path=True)
    connections: int = setting(8, "Transfers at once", minimum=1)
    retries: int = setting(3, "Tries after a failed request", minimum=0)
    timeout: float = setting(60.0, "Seconds to wait for an answer", minimum=0.1)


CONFIGS: tuple[type[StepConfig], ...] = (
    InspectConfig, QuantizeConfig, FinetuneConfig, OptimizeConfig, ChatConfig, EvaluateConfig, UploadConfig,
    WorkspaceConfig, TransferConfig,
)
