"""`phicli finetune`: a LoRA adapter on the quantized model."""

from collections.abc import Sequence
from dataclasses import asdict

from phicli.cli import console, forecasts, options
from phicli.cli.following import Next
from phicli.config.steps import FinetuneConfig


def finetune(config: FinetuneConfig, flags: options.Flags, dry_run: options.DryRun = False,
             json: options.Json = False) -> Sequence[Next]:
    """Train an adapter (LoRA by default) on the quantized model.

    Examples:
      phicli finetune --model tiny --max-steps 100
      phicli finetune --data chats.jsonl --name support --epochs 3
    More: docs/finetune.md
    """
    if dry_run:
        forecasts.show_step("finetune", flags, json)
        return [("finetune",)]
    with console.task_log("finetune", config.root_folder) as progress:
        from phicli.steps.finetune import finetune as train
        from phicli.steps.telling import trained

        folder, manifest = train(config, progress)
    after = [("optimize", *(["--base", config.base] if config.base else []))]
    if json:
        console.result_json({"folder": str(folder), **asdict(manifest)})
        return after
    console.result(str(folder))
    found = manifest.quality
    line = f"loss {found['train_loss_before']:.3f} -> {found['train_loss_after']:.3f}"
    if found["held_out_loss_before"] is not None:
        line += f", held out {found['held_out_loss_before']:.3f} -> {found['held_out_loss_after']:.3f}"
        if found["kept_step"] < found["steps"]:
            line += f" (step {found['kept_step']} of {found['steps']})"
    console.note(f"{line}, {found['tokens_per_second']:.0f} tokens/s, {console.duration(manifest.seconds)}")
    console.note(trained(found))
    return after
