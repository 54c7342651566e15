"""AWQ from a Hugging Face folder to an AWQ checkpoint, layer by layer."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phicli.architectures import architecture_of
from phicli.checkpoints.awq import quantization_config
from phicli.errors import BadInput
from phicli.hardware.ranks import Ranks
from phicli.hub.models import read_config
from phicli.progress import SILENT, Progress
from phicli.quantization.calibration import tokens_digest
from phicli.quantization.grid import GridShape
from phicli.quantization.layer import LayerWork, forward
from phicli.quantization.phases import Phases
from phicli.quantization.plan import AwqPlan, LayerPlan, describe, load_plan, save_plan
from phicli.quantization.refine import Refinement
from phicli.quantization.shards import ShardWriter
from phicli.quantization.streaming import LayeredModel
from phicli.resources.estimates import BATCH_TOKENS
from phicli.workflow.wording import worded

COPIED = ("*.json", "*.jinja", "*.txt", "tokenizer.model")  # beside the weights, all but config.json and indexes


@dataclass
class Report:
    """How it went.

    layer_errors: relative output error of each layer's linears. gpu_bytes: peak GPU memory (0 on a CPU).
    phase_seconds: what the time went to. plan: checksum of the plan that was saved. refined: relative squared error of
    the layers' outputs on rows held out, before and after refining, the mean of all layers.
    """

    layer_errors: list[float] = field(default_factory=list)
    gpu_bytes: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    plan: str | None = None
    refined: tuple[float, float] | None = None


@torch.no_grad()
def quantize_checkpoint(
    folder: Path,
    output: Path,
    tokens: Tensor,
    *,
    shape: GridShape,
    rounding: str = "gptq",
    device: str = "cpu",
    skip: tuple[str, ...] = (),
    plan: Path | None = None,
    save_plan_to: Path | None = None,
    refine: int = 0,
    seed: int = 0,
    progress: Progress = SILENT,
    ranks: Ranks | None = None,
) -> Report:
    """Quantize the linears of all decoder layers; embeddings, norms and lm_head stay float16.

    Each layer is calibrated on the outputs of the layers quantized before it, so that it can make up for their error.

    Args:
        folder: unquantized model. output: folder to write into.
        tokens: int64 (rows, length), the calibration. With a plan and nearest rounding they are not looked at.
        rounding: "gptq" or "nearest". skip: parts of module names to leave in float.
        plan: a file with scales and ranges to take; None searches them. save_plan_to: where to put those found.
        refine: steps of training of each layer, see `phicli.quantization.refine`. seed: of their order.
        ranks: processes that do it together, each called with the same arguments. Only the first one writes weights.

    Raises:
        BadInput: NaN or infinity in weights or activations (named by layer), an unsupported architecture, or a plan
            that is damaged or for another model or other options; fewer sequences than processes.
    """
    place, ranks = torch.device(device), ranks or Ranks()
    if len(tokens) < ranks.count:
        raise BadInput(f"{len(tokens)} calibration sequences cannot be shared out to {ranks.count} GPUs",
                       where="--gpus", hint="more text, more --samples, or fewer GPUs")
    report, phase = Report(), Phases(place)
    with full_precision(), ShardWriter(output) as writer:
        with phase("start"):
            model = LayeredModel(folder, place)
            refinement = Refinement(refine, place, seed, ranks) if refine else None
            job = LayerJob(model, shape, rounding, skip, phase, bool(save_plan_to), progress, refinement, ranks)
            about = describe(model.weights, shape, skip, tokens_digest(tokens))
            if plan:
                job.take_plan(plan, about)
            if job.measures:
                job.start(tokens)
            for name, tensor in model.weights.load(model.outer_names() if ranks.first else []):
                writer.add(name, tensor)
        _quantize_layers(job, writer, report, progress)
        with phase("write"):
            writer.finish()
    save_metadata(folder, output, quantization_config(shape.group_size, sorted({"lm_head", *skip})))
    if save_plan_to and ranks.first:
        report.plan = save_plan(AwqPlan(about, job.plans), save_plan_to)
    report.gpu_bytes = torch.cuda.max_memory_allocated() if place.type == "cuda" else 0
    report.phase_seconds = phase.seconds()
    if refinement and refinement.errors:
        before, after = (sum(errors) / len(errors) for errors in zip(*refinement.errors, strict=True))
        report.refined = before, after
    return report


def _quantize_layers(job: "LayerJob", writer: ShardWriter, report: Report, progress: Progress) -> None:
    """Every layer in turn: read, quantized, written; its error goes into the report."""
    layers = job.model.in_turn()
    with progress.task("quantize", total=len(job.model.layers), unit="layers") as task:
        for _ in job.model.layers:
            with job.phase("load"):
                index, layer = next(layers)
            tensors, error = job.quantize(index, layer)
            with job.phase("write"):
                for name, tensor in tensors.items():
                    writer.add(name, tensor)
            if error is not None:  # read last: it waits for the GPU
                report.layer_errors.append(float(error))
                task.advance(error=f"{report.layer_errors[-1]:.2%}")
            else:
                task.advance()
    layers.close()


class LayerJob:
    """A model on its way through the layers, with the calibration's hidden states before the next of them."""

    def __init__(self, model: LayeredModel, shape: GridShape, rounding: str, skip: tuple[str, ...], phase: Phases,
                 keeps_plans: bool, progress: Progress, refinement: Refinement | None = None,
                 ranks: Ranks | None = None):
        self.model, self.shape, self.rounding, self.skip, self.phase = model, shape, rounding, skip, phase
        self.ranks, self.rows = ranks or Ranks(), 0
        self.scalings = architecture_of(model.config.model_type).scalings
        if not self.scalings:
            progress.warn(f"architecture '{model.config.model_type}': which weights share scales is not known, "
                          "so ranges are clipped and rounded without AWQ's scales")
        self.keeps_plans = keeps_plans
        self.plans: dict[str, LayerPlan] = {}  # on the CPU, by prefix
        self.has_plan = False
        self.refinement = refinement
        self.hidden: list[Tensor] = []
        self.original: list[Tensor] = []  # to refine: the same before the original's next layer
        self.keywords: list[dict[str, Any]] = []

    @property
    def measures(self) -> bool:
        """Whether the calibration runs through the layers: with a plan, only GPTQ and refining need it."""
        return not self.has_plan or self.rounding == "gptq" or self.refinement is not None

    def take_plan(self, file: Path, about: dict[str, str]) -> None:
        prefixes = map(self.model.prefix_of, range(len(self.model.layers)))
        self.plans, self.has_plan = load_plan(file, about, prefixes), True
        for index, layer in enumerate(self.model.layers):
            work = self.work(index, layer)
            plan = self.plans[work.prefix]
            if plan.grids.keys() != set(work.names) or plan.scales.keys() != work.producers(self.scalings):
                raise BadInput(f"does not fit {work.prefix[:-1]}: made by another version of phicli?", where=file,
                               hint="save the plan again")

    def start(self, tokens: Tensor) -> None:
        with worded("transformers cannot run this model", self.model.weights.folder):
            rows, self.keywords = self.model.start(tokens[self.ranks.stride])
        self.rows = len(tokens)
        size = max(1, BATCH_TOKENS[self.model.device.type] // tokens.shape[1])
        self.hidden = [torch.cat(rows[i : i + size]) for i in range(0, len(rows), size)]
        self.original = list(self.hidden) if self.refinement else []

    def work(self, index: int, layer: nn.Module) -> LayerWork:
        return LayerWork(layer, self.model.prefix_of(index), self.shape, self.skip, self.phase, self.ranks)

    def quantize(self, index: int, layer: nn.Module) -> tuple[dict[str, Tensor], Tensor | None]:
        """A layer's tensors for the checkpoint and its error; takes the hidden states on to the next layer."""
        work = self.work(index, layer)
        if self.refinement:
            with self.phase("original"):
                self.original = [forward(layer, x, self.keywords[index]) for x in self.original]
        if self.measures:
            work.collect(self.hidden, self.keywords[index])
        if self.has_plan:
            plan = self.plans[work.prefix].to(self.model.device)
            work.apply_scales(plan, self.scalings, self.model.config)
        else:
            plan = work.search(self.scalings, self.model.config)
            if self.keeps_plans:
                self.plans[work.prefix] = plan.to(torch.device("cpu"))
        grids = work.round(plan, self.rounding)
        if self.refinement and grids:
            with self.phase("refine"):
                inputs, targets = (self.ranks.whole(torch.cat(rows), self.rows, self.ranks.stride)
                                   for rows in (self.hidden, self.original))
                grids = self.refinement(layer, grids, self.shape, inputs, targets, self.keywords[index])
        tensors, error = work.put(grids)
        if self.measures and index + 1 < len(self.model.layers):
            with self.phase("forward"):
                self.hidden = [forward(layer, x, self.keywords[index]) for x in self.hidden]
        return tensors, error


class full_precision:
    """On CUDA, float32 products of float16 values in TF32: exact products, float32 sums, several times the speed."""

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")

    def __exit__(self, *exc: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def save_metadata(folder: Path, output: Path, quantization: dict | None, **changed: Any) -> None:
    """Copy tokenizer and settings files, and write config.json with what the quantization is.

    quantization: None for a checkpoint in floating point. changed: further settings of config.json.
    """
    for pattern in COPIED:
        for path in folder.glob(pattern):
            ours = path.name in ("config.json", "phicli.json") or path.name.endswith(".index.json")
            if path.is_file() and not ours:
                shutil.copyfile(path, output / path.name)
    config = read_config(folder)
    was = config.pop("quantization_config", None)
    if quantization is not None:
        config["quantization_config"] = quantization
    if quantization is not None or was:
        config.pop("torch_dtype", None)
        config["dtype"] = config["torch_dtype"] = "float16"  # transformers reads the first, AutoAWQ the second
    (output / "config.json").write_text(json.dumps(config | changed, indent=2) + "\n", encoding="utf-8")
