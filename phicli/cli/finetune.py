"""`phicli finetune`: a LoRA adapter on the quantized model."""

from dataclasses import asdict
from typing import Annotated

from phicli.cli import console, options
from phicli.cli.options import option
from phicli.settings import Settings


def finetune(
    model: options.Model = None,
    base: Annotated[str | None, option("finetune", "base", "--base", "-b")] = None,
    data: options.Data = None,
    text_template: options.TextTemplate = None,
    name: Annotated[str | None, option("finetune", "name", "--name", "-n")] = None,
    method: Annotated[str | None, option("finetune", "method")] = None,
    max_steps: Annotated[int | None, option("finetune", "max_steps")] = None,
    batch_size: Annotated[int | None, option("finetune", "batch_size")] = None,
    learning_rate: Annotated[float | None, option("finetune", "learning_rate")] = None,
    schedule: Annotated[str | None, option("finetune", "schedule")] = None,
    lora_r: Annotated[int | None, option("finetune", "lora_r")] = None,
    lora_alpha: Annotated[float | None, option("finetune", "lora_alpha")] = None,
    lora_dropout: Annotated[float | None, option("finetune", "lora_dropout")] = None,
    target_modules: Annotated[list[str] | None, option("finetune", "target_modules")] = None,
    seq_len: Annotated[int | None, option("finetune", "seq_len")] = None,
    mask_prompt: Annotated[bool | None, option(
        "finetune", "mask_prompt", "--mask-prompt/--no-mask-prompt")] = None,
    eval_split: Annotated[float | None, option("finetune", "eval_split")] = None,
    checkpoint_steps: Annotated[int | None, option("finetune", "checkpoint_steps")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    root: options.Root = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Train an adapter (LoRA by default) on the quantized model."""
    settings = Settings().resolve("finetune", {k: v for k, v in locals().items() if k != "json"})
    with console.working("finetune", settings.root) as progress:
        from phicli.steps.finetune import finetune as train

        folder, manifest = train(**vars(settings), progress=progress)
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return
    console.result(str(folder))
    found = manifest.quality
    line = f"loss {found['train_loss_before']:.3f} -> {found['train_loss_after']:.3f}"
    if found["held_out_loss_before"] is not None:
        line += f", held out {found['held_out_loss_before']:.3f} -> {found['held_out_loss_after']:.3f}"
    console.note(f"{line}, {found['tokens_per_second']:.0f} tokens/s, {console.duration(manifest.seconds)}")
