"""What `optimize` would make, and how much of it is there: the model and its adapters are judged apart."""

import contextlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.names import ADAPTER_SUFFIX, FINETUNED, ONNX_FOLDER
from phicli.checkpoints.linears import linear_shapes
from phicli.config.steps import OptimizeConfig
from phicli.errors import BadInput, Missing, UsageError
from phicli.export import fused, resident
from phicli.export.sources import PREFIX, Kept, Source, choose_sources, with_slots
from phicli.export.targets import choose_target
from phicli.hardware.driver import compute_capability
from phicli.hub.models import find_base, resolve_model
from phicli.kernels.build import ops_library
from phicli.progress import SILENT, Progress
from phicli.workflow.plan import Plan, State, Verdict, judge


@dataclass
class OptimizePlan(Plan):
    """A model that is up to date takes new adapters without being built again, so the two are judged apart."""

    adapters: dict[str, Source] = field(default_factory=dict)

    def add(self, source: Source) -> None:
        """Put an adapter into the plan. Raises BadInput: no such folder, or a damaged stage."""
        if isinstance(source, Kept):
            self.adapters[source.name] = source
            self.inputs[PREFIX + source.name] = source.fingerprint
            return
        if not source.folder.is_dir():
            raise BadInput("no such adapter folder", where=source.folder,
                           hint=f"phicli finetune --name {source.name}")
        stages.check_whole(source.folder)
        self.adapters[source.name] = source
        self.sources[PREFIX + source.name] = source.folder
        if "inputs" in self.__dict__:
            self.inputs[PREFIX + source.name] = stages.fingerprint(source.folder)

    def check_unchanged(self) -> dict[str, dict[str, Any]]:
        """As a plan does; of adapters that are taken from the model, what its manifest says of them."""
        have = None
        with contextlib.suppress(BadInput):  # it is made again
            have = stages.read_manifest(self.target)
        return {**(have.origins if have else {}), **super().check_unchanged()}

    def model_verdict(self) -> Verdict:
        """The judgement of the model, whatever adapters lie beside it."""
        return judge(self.target, self.step, self.inputs, self.settings, apart=PREFIX)

    def verdict(self) -> Verdict:
        of_model = self.model_verdict()
        return next(iter(self.late_adapters().values()), of_model) if of_model.current else of_model

    def late_adapters(self) -> dict[str, Verdict]:
        """The adapters whose files are not the whole and unchanged result of their sources, and why."""
        have = stages.read_manifest(self.target)
        assert have is not None  # the model is up to date
        late = {}
        for name in self.adapters:
            file = PREFIX + name + ADAPTER_SUFFIX
            if file not in have.files or not (self.target / file).is_file():
                late[name] = Verdict(State.STALE, f"adapter {name} is new")
            elif have.inputs.get(PREFIX + name) != self.inputs[PREFIX + name]:
                late[name] = Verdict(State.STALE, f"adapter {name} has changed")
            elif wrong := stages.damage(self.target, have, file.__eq__):
                late[name] = Verdict(State.BROKEN, wrong)
        return late


def plan_optimize(config: OptimizeConfig, progress: Progress = SILENT) -> OptimizePlan:
    """What `optimize` would make of the same settings; raises what it raises for options and base."""
    chosen_target, root = choose_target(config.device, config.provider, progress), config.root_folder
    target = chosen_target.name
    if config.cuda_graph and target != "cuda":
        raise UsageError(f"--cuda-graph goes with --device cuda, not {target}")
    weights, chosen = config.adapter_weights, config.adapter_layout != "auto"
    layout = config.adapter_layout if chosen else _choose_layout(target, weights, progress)
    if config.cuda_graph and layout not in resident.GRAPHS:
        raise UsageError("--cuda-graph goes with --adapter-layout fused or resident: a graph takes no new inputs")
    if weights == "int8" and layout != "resident" and (layout, target) != ("fused", "cpu"):
        raise UsageError(f"--adapter-weights {weights} goes with --adapter-layout resident, or on a CPU fused")
    if layout == "inputs" and target == "openvino":
        raise UsageError("--adapter-layout inputs does not go with openvino, whose provider takes no optional inputs")
    if layout == "fused" and target not in ("cpu", "cuda"):
        raise UsageError(f"--adapter-layout fused goes with --device cuda or cpu, not {target}")
    if config.kv_cache == "int8" and target not in ("cpu", "cuda"):
        raise UsageError(f"--kv-cache int8 goes with --device cpu or cuda, not {target}")
    graph = config.cuda_graph
    if graph is None:
        graph = target == "cuda" and layout in resident.GRAPHS
    model = resolve_model(config.base, progress) if config.base else find_base(root)
    if not chosen and target == "cpu" and not fused.takes_sizes(linear_shapes(model).values()):
        layout = "resident" if weights == "int8" else "inputs"
    if config.merge and layout not in resident.GRAPHS:
        layout = "resident"  # in which nothing stands in the graph for an adapter that is not there
    weights = weights or ("int8" if (layout, target) == ("fused", "cpu") else "float")
    embeddings = config.embeddings or (config.head if target in ("cpu", "cuda", "openvino") else "float")
    head = "float" if target == "tensorrt" and config.head == "int8" else config.head  # which it does not have
    settings = {"device": target, "head": head, "embeddings": embeddings, "kv_cache": config.kv_cache,
                "cuda_graph": graph,
                "adapter_layout": layout,
                "adapter_weights": "fp16" if (layout, weights) == ("fused", "float") else weights,
                "activations": config.activations if target in ("cpu", "webgpu", "openvino") else "fp16"}
    if target == "openvino":
        settings["hardware"] = chosen_target.hardware
    plan = OptimizePlan("optimize", Path(config.output or root / ONNX_FOLDER), {"base": model}, settings)
    if config.merge:  # it is in the base
        return plan
    held, refused = with_slots(choose_sources(config.adapters, root / FINETUNED), model, progress)
    if config.adapters and not held:
        raise next(iter(refused.values()))
    for name, error in refused.items():
        cure = shlex.join(["phicli", "merge", *config.as_options, "--adapter", str(error.where)])
        progress.warn(f"adapter {name} is left out: {error}: {cure}")
    for source in held:
        plan.add(source)
    return plan


def _choose_layout(target: str, weights: str | None, progress: Progress) -> str:
    if target == "cpu":
        return "fused"  # without the library too, see `portable`
    if target != "cuda":
        return "resident" if target == "openvino" else "inputs"
    if weights == "int8":
        return "resident"
    try:
        ops_library(target)
    except Missing as e:
        if compute_capability():  # else `choose_target` has said that there is no GPU
            progress.note(f"adapters will cost more time than they need to, in --adapter-layout resident: {e}")
        return "resident"
    return "fused"
