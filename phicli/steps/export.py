"""Writing what other programs take: GGUF, a zip, Foundry Local's folder, a model package, an adapter as PEFT."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from phicli.artifacts.names import ADAPTER_SUFFIX, ADAPTERS, EXPORTED, FINETUNED, ONNX_FOLDER
from phicli.artifacts.publishing import beside, publishing_file
from phicli.checkpoints.linears import linear_shapes
from phicli.config.exporting import ExportConfig, MergeConfig
from phicli.config.root_model import around, root_around
from phicli.config.steps import OptimizeConfig
from phicli.errors import BadInput, Missing, PhicliError, UsageError
from phicli.export import packages
from phicli.export.gguf import convert_to_gguf, find_converter
from phicli.export.sources import Source
from phicli.export.targets import choose_target
from phicli.hub.models import read_config, resolve_model
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.steps.merge import choose_adapter, choose_base, merge
from phicli.steps.optimize import optimize
from phicli.workflow.plan import Plan

FILES = {"zip": ".zip", "gguf": ".gguf"}  # what is one file, and how its name ends


@subdued()
def export(config: ExportConfig, progress: Progress = SILENT) -> Path:
    """Write a model or an adapter as another program takes it.

    Returns:
        the file or folder: `output`, or one under `root`/export.

    Raises:
        UsageError: options that do not go together. BadInput: nothing that could be exported so.
        Missing: no such model yet, no converter, no space.
    """
    if config.adapter and config.to not in ("gguf", "peft"):
        raise UsageError(f"--adapter goes with --to gguf or peft, not {config.to}", where="--adapter",
                         hint=_with_adapter(config, config.adapter))
    if config.variants and (config.to != "olive" or config.path):
        raise UsageError("--variant goes with --to olive, without --path", where="--variant")
    if config.to in ("gguf", "peft") and _alone(config):
        raise UsageError(f"--to {config.to} is of a root's model, and this folder lies in none", where="--path",
                         hint=f"phicli export --model MODEL --to {config.to}")
    write = {"zip": _zip, "foundry-local": _foundry, "olive": _olive, "gguf": _gguf, "peft": _peft}
    return write[config.to](config, progress)


def _onnx(config: ExportConfig) -> Path:
    return Path(config.path or config.root_folder / ONNX_FOLDER)


def _name(config: ExportConfig) -> str:
    """What the model is called: by the root that its ONNX folder is in, and by that folder where it is not the usual
    one; by that alone where it has a name of its own."""
    folder = Path(config.path).resolve() if config.path else config.root_folder.resolve() / ONNX_FOLDER
    if folder.name.startswith(ONNX_FOLDER):
        return (folder.parent.name or "model") + folder.name.removeprefix(ONNX_FOLDER)
    root = root_around(folder)
    return f"{root.name}-{folder.name}" if root else folder.name or "model"


def _alone(config: ExportConfig) -> bool:
    """Whether what is exported lies in no root, and none was given."""
    return bool(config.path) and not config.root_chosen and root_around(Path(str(config.path))) is None


def _place(config: ExportConfig, name: str) -> Path:
    """Where the result goes. Raises BadInput: a file is there that an earlier export has not put there."""
    ending, alone = FILES.get(config.to, ""), _alone(config)
    folder = around(Path(str(config.path))) if alone else config.root_folder / EXPORTED
    place = Path(config.output or folder / f"{name}{ending or f'-{config.to}'}")
    if ending and (config.output or alone) and place.exists():
        raise BadInput("is there already", where=place, hint="remove it, or name another --output")
    return place


def _zip(config: ExportConfig, progress: Progress) -> Path:
    place = _place(config, _name(config))
    with publishing_file(place) as fresh, beside(place.with_name(f"{place.name}.work")) as scratch:
        packages.write_zip(_onnx(config), fresh, scratch)
    return place


def _foundry(config: ExportConfig, progress: Progress) -> Path:
    folder, name = _onnx(config), _name(config)
    if held := [path.name.removesuffix(ADAPTER_SUFFIX) for path in folder.glob(f"{ADAPTERS}/*{ADAPTER_SUFFIX}")]:
        progress.warn(f"Foundry Local knows no adapters: {', '.join(sorted(held))} stay behind; for a model with one: "
                      f"{_with_adapter(config, 'ADAPTER')}")
    plan = Plan("export", _place(config, name), {"model": folder}, {"to": config.to, "name": name})
    return _published(plan, progress, lambda fresh: packages.write_foundry(folder, fresh, name))


def _with_adapter(config: ExportConfig, adapter: str) -> str:
    """The commands that export a model with an adapter in its weights."""
    folder = config.root_folder / f"{ONNX_FOLDER}-{Path(adapter).name}"
    return (f"phicli optimize --merge {shlex.quote(adapter)} && "
            f"phicli export --path {shlex.quote(str(folder))} --to {config.to}")


def _olive(config: ExportConfig, progress: Progress) -> Path:
    name = _name(config)
    folders = _variants(config, progress) or {name: _onnx(config)}
    sources = folders if config.variants else {"model": _onnx(config)}
    plan = Plan("export", _place(config, name), sources, {"to": config.to, "name": name})

    def write(fresh: Path) -> None:
        with TemporaryDirectory(prefix=".package-", dir=fresh.parent) as scratch:
            packages.write_olive_package(folders, fresh, name, Path(scratch))

    return _published(plan, progress, write)


def _variants(config: ExportConfig, progress: Progress) -> dict[str, Path]:
    """A model of the root for each device of --variant, built where it is not there; by the device's name.

    Their adapters lie in the graphs, so that the same files choose one in all of them.
    """
    folders = {}
    targets = {device: _target(device) for device in config.variants}  # all, before the first is built
    for device, target in targets.items():
        wanted = OptimizeConfig(model=config.model, root=config.root, device=device, adapter_layout="resident",
                                output=str(config.root_folder / f"{ONNX_FOLDER}-{target}"))
        progress.note(f"variant {target}")
        folders[target] = optimize(wanted, progress).folder
    return folders


def _target(device: str) -> str:
    """The target that a variant is for. Raises as `choose_target`."""
    try:
        return choose_target(device).name
    except PhicliError as e:
        hint = "phicli export --to olive --variant cpu" if isinstance(e, Missing) else e.hint
        raise type(e)(e.message, where=f"--variant {device}", hint=hint) from None


def _gguf(config: ExportConfig, progress: Progress) -> Path:
    converter = find_converter(config.converter)
    name = _name(config) + (f"-{choose_adapter(config.adapter, config.root_folder / FINETUNED).name}"
                            if config.adapter else "")
    place = _place(config, f"{name}-{config.outtype}")
    if config.adapter:
        model = merge(MergeConfig(model=config.model, root=config.root, adapter=config.adapter), progress).folder
    else:
        model = resolve_model(config.model, progress)
    if read_config(model).get("quantization_config"):
        raise BadInput("is quantized, which llama.cpp's converter does not take", where=model,
                       hint="--model with the unquantized model")
    progress.note(f"running {' '.join(converter)}")
    with publishing_file(place) as fresh:
        convert_to_gguf(converter, model, fresh, config.outtype)
    return place


def _peft(config: ExportConfig, progress: Progress) -> Path:
    from phicli.export.plain_adapter import write_adapter
    from phicli.export.portable_adapter import for_original

    adapter = choose_adapter(config.adapter, config.root_folder / FINETUNED)
    base = choose_base(MergeConfig(model=config.model, root=config.root), adapter, progress)
    method = (read_config(base).get("quantization_config") or {}).get("quant_method")
    sources = {"adapter": adapter, "base": base}
    if method == "awq":
        sources["original"] = resolve_model(config.model, progress)
    plan = Plan("export", _place(config, adapter.name), sources, {"to": config.to, "model": config.model})
    source = Source(adapter.name, adapter)
    for remark in source.check_kind(base):
        progress.warn(remark)
    source.check(linear_shapes(base), plan.inputs["base"], progress)

    def write(fresh: Path) -> None:
        loras = for_original(source.loras, base, sources["original"]) if method == "awq" else source.loras
        write_adapter(loras, fresh, config.model)
        if source.template.is_file():
            shutil.copyfile(source.template, fresh / source.template.name)

    return _published(plan, progress, write)


def _published(plan: Plan, progress: Progress, write: Callable[[Path], object]) -> Path:
    """The folder of a plan, filled by `write` where it is not up to date."""
    if plan.finished(False, progress) is None:
        with plan.locked(False, progress) as done:
            if done is None:
                with plan.publishing() as (fresh, _):
                    write(fresh)
    return plan.target
