"""What `optimize` would make, and how much of it is there: the model and its adapters are judged apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phicli import stages
from phicli.errors import BadInput, Missing, UsageError
from phicli.models import find_base, resolve_model
from phicli.native.build import ops_library
from phicli.onnx import fused, resident
from phicli.onnx.adapters import SUFFIX
from phicli.onnx.checkpoint import linear_shapes
from phicli.onnx.sources import PREFIX, Kept, Source, choose_sources
from phicli.onnx.targets import choose_target
from phicli.plans import Plan, State, Verdict, judge
from phicli.progress import SILENT, Progress
from phicli.runtime.devices import compute_capability

FOLDER = "onnx-ao"


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
            raise BadInput("no such adapter folder", where=source.folder, hint="phicli finetune makes one")
        stages.check_whole(source.folder)
        self.adapters[source.name] = source
        self.sources[PREFIX + source.name] = source.folder
        if "inputs" in self.__dict__:
            self.inputs[PREFIX + source.name] = stages.fingerprint(source.folder)

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
            file = PREFIX + name + SUFFIX
            if file not in have.files or not (self.target / file).is_file():
                late[name] = Verdict(State.STALE, f"adapter {name} is new")
            elif have.inputs.get(PREFIX + name) != self.inputs[PREFIX + name]:
                late[name] = Verdict(State.STALE, f"adapter {name} has changed")
            elif wrong := stages.damage(self.target, have, file.__eq__):
                late[name] = Verdict(State.BROKEN, wrong)
        return late


def plan_optimize(
    *, root: str | Path, base: str | None, adapters: Sequence[str] | None, device: str, activations: str, head: str,
    output: Path | None, adapter_layout: str | None = None, adapter_weights: str = "float",
    cuda_graph: bool | None = None, progress: Progress = SILENT,
) -> OptimizePlan:
    """What `optimize` would make of the same arguments; raises what it raises for options and base."""
    target = choose_target(device, progress)
    if cuda_graph and target != "cuda":
        raise UsageError(f"--cuda-graph goes with --device cuda, not {target}")
    layout = adapter_layout or _choose_layout(target, adapter_weights, progress)
    if cuda_graph and layout not in resident.GRAPHS:
        raise UsageError("--cuda-graph goes with --adapter-layout fused or resident: a graph takes no new inputs")
    if adapter_weights != "float" and layout != "resident" and (layout, target) != ("fused", "cpu"):
        raise UsageError(f"--adapter-weights {adapter_weights} goes with --adapter-layout resident, or on a CPU fused")
    if layout == "fused" and target not in ("cpu", "cuda"):
        raise UsageError(f"--adapter-layout fused goes with --device cuda or cpu, not {target}")
    if cuda_graph is None:
        cuda_graph = target == "cuda" and layout in resident.GRAPHS
    model = resolve_model(base, progress) if base else find_base(Path(root))
    if not adapter_layout and target == "cpu" and not fused.takes_sizes(linear_shapes(model).values()):
        layout = "inputs" if adapter_weights == "float" else "resident"
    settings = {"device": target, "head": head, "cuda_graph": cuda_graph,
                "adapter_layout": layout,
                "adapter_weights": "fp16" if (layout, adapter_weights) == ("fused", "float") else adapter_weights,
                "activations": activations if target in ("cpu", "webgpu") else "fp16"}
    plan = OptimizePlan("optimize", Path(output or Path(root) / FOLDER), {"base": model}, settings)
    for source in choose_sources(adapters, Path(root) / "ft").values():
        plan.add(source)
    return plan


def _choose_layout(target: str, weights: str, progress: Progress) -> str:
    if target == "cpu":
        return "fused"  # without the library too, see `portable`
    if target != "cuda":
        return "inputs"
    if weights != "float":
        return "resident"
    try:
        ops_library(target)
    except Missing as e:
        if compute_capability():  # else `choose_target` has said that there is no GPU
            progress.note(f"adapters will cost more time than they need to, in --adapter-layout resident: {e}")
        return "resident"
    return "fused"
