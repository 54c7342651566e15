"""The chain of stages under a root, each judged as its own command would judge it. Imports no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phicli.artifacts import hashing, stages
from phicli.artifacts.locks import holder
from phicli.errors import Missing, PhicliError
from phicli.progress import SILENT
from phicli.settings import Settings
from phicli.steps.lab import Lab
from phicli.workflow.plan import CURRENT, Plan, State, Verdict


@dataclass(frozen=True)
class Link:
    """One stage. state: a `State`; why: its reason, or who works on it now; made: date; bytes: size on disk."""

    step: str
    state: str
    why: str
    place: str
    made: str = ""
    bytes: int = 0


def chain(settings: Settings, flags: dict[str, Any], reread: bool = False) -> list[Link]:
    """Data, quantize, finetune (every adapter there is), optimize and evaluate, as `phicli run` would find them.

    Args:
        flags: as those of `run_lab`. reread: read every file, whatever is remembered of it.
    """
    if reread:
        hashing.forget()
    return list(_Chain(Lab(settings, flags, SILENT)).links())


class _Chain:
    def __init__(self, lab: Lab):
        self.lab, self.root = lab, lab.root
        self.late: dict[Path, str] = {}  # targets that are not up to date -> name of the step

    def links(self) -> Iterator[Link]:
        from phicli.evaluation.plan import RESULT, plan_evaluate
        from phicli.export.plan import FOLDER, plan_optimize
        from phicli.steps.finetune import plan_finetune
        from phicli.steps.quantize import plan_quantize

        arguments = {name: self.lab.arguments(name, plan) for name, plan in (
            ("quantize", plan_quantize), ("finetune", plan_finetune), ("optimize", plan_optimize),
            ("evaluate", plan_evaluate))}
        adapter = self.root / "ft" / str(arguments["finetune"]["name"])
        yield self.data(Path(arguments["finetune"]["data"]), arguments["finetune"]["text_template"])
        yield self.link("quantize", self.root / arguments["quantize"]["algorithm"], plan_quantize,
                        arguments["quantize"])
        yield self.link("finetune", adapter, plan_finetune, arguments["finetune"])
        base = self.root / arguments["quantize"]["algorithm"]
        for folder in sorted(p.parent for p in self.root.glob(f"ft/[!.]*/{stages.MANIFEST}")):
            if folder != adapter:
                yield self.link("finetune", folder, _as_it_was, {"folder": folder, "base": base})
        yield self.link("optimize", self.root / FOLDER, plan_optimize, arguments["optimize"])
        yield self.link("evaluate", self.root / RESULT, plan_evaluate, arguments["evaluate"])

    def data(self, path: Path, template: str) -> Link:
        from phicli.dataset import load_rows
        from phicli.text import TextTemplate

        try:
            rows = load_rows(path, TextTemplate(template))
        except PhicliError as e:
            return Link("data", State.BROKEN if path.exists() else State.MISSING, str(e), str(path))
        return Link("data", CURRENT.state, f"{len(rows)} rows", str(path), bytes=path.stat().st_size)

    def link(self, step: str, target: Path, make_plan: Callable[..., Plan], arguments: dict[str, Any]) -> Link:
        """A stage's own verdict; one that is up to date but made from what will be made again is stale."""
        waits = list(self.late.values())
        try:
            plan = make_plan(**_local(arguments))
            verdict = plan.verdict()
            waits = [name for place, name in self.late.items() if place in plan.sources.values()
                     or step == "evaluate" or (step == "optimize" and name.startswith("finetune"))]
        except PhicliError as e:
            state = State.STALE if target.exists() else State.MISSING
            verdict = Verdict(state, f"after {waits[0]}" if waits else str(e))
        if verdict.current and waits:
            verdict = Verdict(State.STALE, f"after {waits[0]}")
        if not verdict.current:
            self.late[target] = f"{step} {target.name}" if step == "finetune" else step
        now = holder(target)
        made, size = _about(target)
        return Link(step, verdict.state, f"{now} works on it" if now else verdict.reason, str(target), made, size)


def _local(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with models by their folders: nothing is fetched to tell a state. Raises Missing."""
    from phicli.hub.models import local_tokenizer

    found = dict(arguments)
    for name in ("model", "base"):
        if isinstance(found.get(name), str):
            folder = local_tokenizer(found[name])
            if folder is None:
                raise Missing(f"{found[name]} is not on this machine yet")
            found[name] = str(folder)
    return found


def _as_it_was(folder: Path, base: Path) -> Plan:
    """The plan of an adapter with another name than the settings': its own settings, on the base that is there."""
    have = stages.read_manifest(folder)
    assert have is not None
    plan = Plan("finetune", folder, {"base": base}, have.settings)
    plan.inputs = {**have.inputs, "base": stages.fingerprint(base)}
    return plan


def _about(target: Path) -> tuple[str, int]:
    """When the stage was made, and its size in bytes."""
    try:
        if target.is_dir():
            have = stages.read_manifest(target)
            return (have.created, have.bytes) if have else ("", 0)
        document = stages.read_sealed(target, "") or {}
        return str(document.get("created", "")), target.stat().st_size if document else 0
    except PhicliError:
        return "", 0
