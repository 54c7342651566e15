"""Running one Olive pass on one model: no engine, no cache, no telemetry; exceptions come through."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phicli.config.setting import StepConfig, settings_of
from phicli.hardware.devices import EXECUTION_PROVIDERS
from phicli.progress import SILENT, Progress
from phicli.workflow.wording import worded


def pass_parameters(config: type[StepConfig], names: Sequence[str]) -> dict[str, Any]:
    """Settings of a step as what Olive calls a pass's parameters, by name."""
    from olive.passes.pass_config import PassConfigParam

    known = settings_of(config)
    return {name: PassConfigParam(type_=list if known[name].kind is tuple else known[name].kind,
                                  default_value=known[name].default, description=known[name].help) for name in names}


def run_pass(
    pass_class: Any,
    config: dict[str, Any],
    model: Any,
    output: Path,
    *,
    device: str = "cpu",
    adapter: Path | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Run an Olive pass.

    Args:
        pass_class: a subclass of `olive.passes.Pass`, or the name of one of Olive's own ("Gptq").
        config: the pass's settings, checked by Olive; none of them is searched.
        model: folder of a Hugging Face model, or the handler that an earlier pass has made. adapter: folder of a PEFT
            adapter on the former.
        output: folder that the pass writes.
        device: one of `EXECUTION_PROVIDERS`; decides the execution provider that the pass is told.
        progress: handed to the pass as its attribute `progress` if its class has one.

    Returns:
        The model handler that the pass made; what the pass measured stands in its `model_attributes`.
    """
    from olive.hardware import AcceleratorSpec
    from olive.model import HfModelHandler
    from olive.package_config import OlivePackageConfig
    from olive.passes.olive_pass import create_pass_from_dict

    if isinstance(pass_class, str):
        pass_class = OlivePackageConfig.load_default_config().import_pass_module(pass_class)
    accelerator = AcceleratorSpec(
        accelerator_type="cpu" if device == "cpu" else "gpu", execution_provider=EXECUTION_PROVIDERS[device]
    )
    olive_pass = create_pass_from_dict(pass_class, config, disable_search=True, accelerator_spec=accelerator)
    if hasattr(pass_class, "progress"):
        olive_pass.progress = progress
    if isinstance(model, Path):
        with worded("Olive cannot open this model", model):
            model = HfModelHandler(model_path=str(model), adapter_path=str(adapter) if adapter else None,
                                   load_kwargs={"trust_remote_code": False})  # unset, transformers asks on the terminal
    return olive_pass.run(model, str(output))
