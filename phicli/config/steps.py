"""The settings of each step: default, help, choices and range of every one.

Flags, phicli.toml, environment, `phicli config`, manifests, estimates and Olive's passes take them from here.
"""

from dataclasses import dataclass
from typing import ClassVar

from phicli.config import shared
from phicli.config.bases import OfModel, OfRows
from phicli.config.setting import again, setting

QUANTIZE_ALGORITHMS = ("awq", "gptq", "rtn", "kquant", "quarot")
FINETUNE_METHODS = ("lora", "dora", "loftq", "loha", "lokr")
DEFAULT_RANK = 64


@dataclass(frozen=True)
class InspectConfig(OfRows):
    """Settings of `phicli inspect`."""

    STEP: ClassVar[str] = "inspect"

    data: tuple[str, ...] = shared.data(argument=True)
    max_tokens: int = setting(1024, "Report rows of more tokens than this", minimum=1)
    rows: int = setting(3, "Number of rows to print", minimum=0)
    eval_data: str = shared.eval_data()
    fix: str | None = setting(None, "Write a clean copy to OUT: repair what can be repaired, drop what cannot",
                              once=True, metavar="OUT", recorded=False, path=True)


@dataclass(frozen=True)
class QuantizeConfig(OfRows):
    """Settings of `phicli quantize`."""

    STEP: ClassVar[str] = "quantize"

    algorithm: str = setting("awq", "Quantization algorithm", choices=QUANTIZE_ALGORITHMS, flags=("--algorithm", "-a"))
    implementation: str = setting("phicli", "Implementation of AWQ; autoawq is the package AutoAWQ, which needs CUDA",
                                  choices=("phicli", "autoawq"), panel="Quantization")
    bits: int = setting(4, "Bits per weight: AWQ 4, other algorithms 4 or 8", minimum=2)
    group_size: int | None = setting(None, "Weights of a row that share a scale and a zero point; AWQ: 32, 64 or 128 "
                                     "[default: 128, or the largest below it that fits the model]", minimum=16)
    symmetric: bool = setting(False, "Zero point in the middle of the range, or one for each group",
                              flags=("--symmetric/--asymmetric",), panel="Quantization")
    skip: tuple[str, ...] = setting((), "Leave linear layers unquantized whose names contain this; may be repeated",
                                    panel="Quantization")
    rounding: str = setting("gptq", "How AWQ rounds weights; gptq: with error feedback", choices=("gptq", "nearest"),
                            panel="Quantization")
    refine: int | None = setting(None, "Training steps of each layer's integers and scales after AWQ; 0: none "
                                 "[default: 200 on a GPU, 0 on a CPU]", minimum=0, panel="Quantization")
    calibration: str | None = setting(None, "Calibration data: JSON Lines or plain text [default: a built-in text]",
                                      recorded=False, path=True)
    samples: int = setting(128, "Number of calibration sequences", minimum=1)
    seq_len: int = setting(512, "Length of a calibration sequence in tokens", minimum=8, panel="Quantization")
    own_rows: tuple[str, ...] = setting((), "Calibrate on rows of yours too: file, folder or hub name; may be repeated "
                                        "[default: none; phicli run: the data it trains on, if given]",
                                        metavar="DATA", path=True, reference=True, recorded=False,
                                        panel="Quantization")
    generated: int | None = setting(None, "Calibration sequences that the model writes itself, beside the text "
                                    "[default: 128 on a GPU, 0 on a CPU]", minimum=0, panel="Quantization")
    plan: str | None = setting(None, "Take AWQ's scales and clipping from this file of --save-plan, without a search",
                               recorded=False, path=True, panel="Quantization")
    save_plan: str | None = setting(None, "Save AWQ's scales and clipping to this file (safetensors)", recorded=False,
                                    path=True, panel="Quantization")
    gpus: str = shared.gpus("the work of phicli's own AWQ")
    device: str = shared.device()
    seed: int = shared.seed()
    output: str | None = shared.output()
    force: bool = shared.force()


@dataclass(frozen=True)
class FinetuneConfig(OfRows):
    """Settings of `phicli finetune`."""

    STEP: ClassVar[str] = "finetune"

    base: str | None = setting(None, "Model to train on: folder or id [default: the quantized model under the root]",
                               flags=("--base", "-b"), recorded=False, path=True, reference=True, panel="Training")
    data: tuple[str, ...] = shared.data()
    name: str = setting("travel", "Name of the adapter", metavar="NAME", flags=("--name", "-n"), recorded=False)
    method: str = setting("lora", "Kind of adapter", choices=FINETUNE_METHODS)
    from_adapter: str | None = setting(None, "Adapter to continue from: folder, or a name under ROOT/ft", path=True,
                                       reference=True, recorded=False, panel="Training")
    max_steps: int | None = setting(None, "Training steps [default: 100, or as many as --epochs say]",
                                    minimum=1)
    epochs: float | None = setting(None, "Passes over the rows; --max-steps may end them",
                                   above=0)
    batch_size: int = setting(8, "Rows per training step", minimum=1)
    learning_rate: float | None = setting(None, "Peak learning rate [default: by the model's width]", minimum=0)
    schedule: str = setting("linear", "Learning rate schedule after the warm-up",
                            choices=("linear", "cosine", "constant"), panel="Training")
    lora_r: int | None = setting(None, "Rank of the adapter [default: 64, or that of --from-adapter]", minimum=1)
    lora_alpha: float | None = setting(None, "Alpha: the adapter's output is scaled by alpha / rank [default: twice "
                                       "the rank]", minimum=0, panel="Training")
    lora_dropout: float = setting(0.05, "Dropout probability of the adapter's input", minimum=0, below=1,
                                  panel="Training")
    target_modules: tuple[str, ...] = setting(("all-linear",), "Linear layers that get an adapter, by name; may be "
                                              "repeated", panel="Training")
    seq_len: int = setting(1024, "Maximum length of a row in tokens", minimum=8, panel="Training")
    too_long: str = setting("cut", "What becomes of a longer row; cut: its first tokens and the one that ends its last "
                            "turn, split: several rows", choices=("cut", "drop", "split"), panel="Training")
    force_template: bool = setting(False, "Train with a --text-template that is not the model's own layout", once=True,
                                   recorded=False, panel="Training")
    mask_prompt: bool = setting(True, "Compute the loss on the response only, or on the prompt too",
                                flags=("--mask-prompt/--no-mask-prompt",), panel="Training")
    eval_split: float = setting(0.1, "Fraction of the rows held out for evaluation, rows that ask the same together "
                                "(at most 500 rows)", minimum=0, below=1, panel="Measuring")
    eval_data: str | None = setting(None, "Held-out data for --keep and the loss curve, in place of --eval-split",
                                    path=True, reference=True, recorded=False, panel="Measuring")
    eval_steps: int | None = setting(None, "Training steps between measurements of the held-out loss [default: a tenth "
                                     "of the run]", minimum=1, panel="Measuring")
    keep: str = setting("best", "Which adapter is the result; best: that of the lowest held-out loss",
                        choices=("best", "last"), panel="Measuring")
    publish_anyway: bool = setting(False, "Publish the adapter even if its held-out loss is not below that of the "
                                   "start", flags=("--publish-anyway/--no-publish-anyway",), recorded=False,
                                   panel="Measuring")
    report_to: str = setting("none", "Where loss curves are logged", choices=("none", "tensorboard", "mlflow"),
                             recorded=False, panel="Measuring")
    logging_dir: str | None = setting(None, "Folder for those logs [default: ROOT/ft/.runs; MLFLOW_TRACKING_URI counts "
                                      "before it]", path=True, recorded=False, panel="Measuring")
    checkpoint_steps: int = setting(20, "Training steps between checkpoints", minimum=1, recorded=False,
                                    panel="Training")
    gpu_memory: float | None = setting(None, "GPU memory to take at most, in GB; with less, steps take longer "
                                       "[default: what is free]", above=0, metavar="GB", recorded=False,
                                       panel=shared.RUNNING)
    gpus: str = shared.gpus("a step's rows")
    shard: bool | None = setting(None, "Let each GPU hold a part of the base only, gathered layer by layer (FSDP): "
                                 "slower [default: where one does not hold it whole]", flags=("--shard/--no-shard",),
                                 recorded=False, panel="Training")
    device: str = shared.device()
    seed: int = shared.seed()
    force: bool = shared.force()


@dataclass(frozen=True)
class OptimizeConfig(OfModel):
    """Settings of `phicli optimize`."""

    STEP: ClassVar[str] = "optimize"

    base: str | None = setting(None, "Model to convert: folder or id [default: the quantized model under the root]",
                               flags=("--base", "-b"), recorded=False, path=True, reference=True, panel="Graph")
    adapters: tuple[str, ...] = setting((), "Adapter to add: NAME=FOLDER, or a name under ROOT/ft; may be repeated "
                                        "[default: all under ROOT/ft]", once=True,
                                        flags=("--adapter", "-a"), metavar="NAME=FOLDER", recorded=False)
    merge: str | None = setting(None, "Adapter to merge into the weights, for a model without slots: a name under "
                                "ROOT/ft, or a folder", once=True, metavar="ADAPTER", path=True, recorded=False)
    device: str = setting("auto", "Device that the model will run on (auto | cpu | gpu | cuda | dml | webgpu | "
                          "tensorrt | openvino)")
    provider: str | None = setting(None, "Execution provider, of a device that has several, as Olive or onnxruntime "
                                   "calls it [default: cpu's or cuda's]", metavar="NAME")
    activations: str = setting("int8", "Precision of activations in int4 matrix products, on cpu and webgpu; on "
                               "openvino int8 is what it chooses itself",
                               choices=("int8", "fp32"), panel="Graph")
    head: str = setting("int8", "Precision of the output projection (lm_head)", choices=("int4", "int8", "float"),
                        panel="Graph")
    embeddings: str | None = setting(None, "Precision of the token embeddings, one matrix with the head where the "
                                     "model ties them and both are as precise [default: as the head; float on GPUs "
                                     "but cuda]", choices=("int4", "int8", "float"), panel="Graph")
    kv_cache: str = setting("float", "Precision of the key/value cache; int8 is for cpu and cuda",
                            choices=("float", "int8"), panel="Graph")
    adapter_layout: str = setting("auto", "How adapters are built into the ONNX graph; auto: the fastest for the "
                                  "device (expert setting)", choices=("auto", "inputs", "resident", "fused"),
                                  panel="Graph")
    adapter_weights: str | None = setting(None, "Precision of adapters in the graph; int8 is for resident, and on a "
                                          "CPU for fused [default: int8 on a CPU where they are fused, else float]",
                                          choices=("float", "int8"), panel="Graph")
    cuda_graph: bool | None = setting(None, "Decode with a CUDA graph [default: on cuda, unless adapters are inputs]",
                                      flags=("--cuda-graph/--no-cuda-graph",), panel="Graph")
    output: str | None = shared.output()
    force: bool = shared.force()


@dataclass(frozen=True)
class EvaluateConfig(OfRows):
    """Settings of `phicli evaluate`."""

    STEP: ClassVar[str] = "evaluate"

    eval_data: str = shared.eval_data()
    algorithm: str = again(QuantizeConfig, "algorithm", flags=("--algorithm",))  # -a is the adapter
    adapter: str | None = shared.adapter()
    stages: tuple[str, ...] = setting((), "Stage to measure: awq, onnx+travel, FOLDER, FOLDER+ADAPTER, a GGUF file; "
                                      "may be repeated, others are compared with the first [default: all under the "
                                      "root]", once=True, flags=("--stage", "-s"), metavar="STAGE", path=True,
                                      reference=True)
    rows: int | None = setting(None, "Measure only so many rows, the first [default: all]", minimum=1)
    generate: int = setting(0, "Questions that every stage answers, to be seen side by side", minimum=0)
    metrics: tuple[str, ...] = setting((), "Metric of those answers (of all rows without --generate): exact-match, "
                                       "token-f1, or one of an installed package; may be repeated",
                                       flags=("--metric",), metavar="NAME")
    tasks: tuple[str, ...] = setting((), "Task of lm-eval: its name, or a YAML file; may be repeated",
                                     flags=("--task",), metavar="TASK", panel="Measuring")
    seq_len: int = setting(1024, "Maximum length of a row in tokens; longer rows are truncated", minimum=8,
                           panel="Measuring")
    max_new_tokens: int = setting(128, "Maximum length of an answer in tokens", minimum=1, panel="Measuring")
    output: str | None = setting(None, "File for the figures, JSON [default: ROOT/evaluation.json; with --stage none]",
                                 once=True, flags=("--output", "-o"), metavar="FILE", path=True, recorded=False,
                                 panel=shared.RUNNING)
    device: str = shared.device()
    provider: str = shared.provider()
    kernels: str = shared.kernels()
    force: bool = shared.force()


@dataclass(frozen=True)
class LabConfig(OfRows):
    """What `phicli run` and `phicli status` take as flags; the steps' other settings come from phicli.toml."""

    STEP: ClassVar[str] = "run"

    data: tuple[str, ...] = shared.data()
    eval_data: str = shared.eval_data()
    name: str = again(FinetuneConfig, "name")
    algorithm: str = again(QuantizeConfig, "algorithm")
    max_steps: int | None = again(FinetuneConfig, "max_steps")
    epochs: float | None = again(FinetuneConfig, "epochs")
    gpus: str = again(FinetuneConfig, "gpus",
                      help="GPUs of one machine that quantize and finetune share: a number, or all")
    device: str = shared.device()
    seed: int = shared.seed()
