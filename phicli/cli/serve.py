"""`phicli serve`: the optimized model and its adapters over HTTP."""

import contextlib
import shlex
import signal

from phicli.artifacts.names import ONNX_FOLDER
from phicli.cli import console, options
from phicli.cli.chat import no_model
from phicli.cli.engines import warn_of_idle
from phicli.cli.manner import manner
from phicli.config.commands import ServeConfig


def serve(config: ServeConfig, flags: options.Flags) -> None:
    """Serve the optimized model and its adapters: OpenAI's and Anthropic's protocols, and a page to chat.

    Examples:
      phicli serve --model tiny
      phicli serve --host 0.0.0.0 --api-key-file keys.txt
    More: docs/serve.md
    """
    from phicli.serving.needed import check_packages

    if config.engine == "vllm":
        return _serve_with_vllm(config, flags)
    check_packages()
    if not config.path and not (config.root_folder / ONNX_FOLDER).is_dir():
        raise no_model(config, "serve")
    with contextlib.ExitStack() as stack:
        with console.task_log("serve", config.root_folder):
            from phicli.serving.server import opened

            ready = stack.enter_context(opened(config, console.note if manner().verbose else None))
        most = ready.service.engine.context
        if config.context and config.context > most:
            console.warn(f"the model takes {most:,} tokens, prompt and answer together, not the {config.context:,} of "
                         "--context")
        if ready.service.engine.why_alone:
            console.note(f"answers are generated one after the other: {ready.service.engine.why_alone}")
        console.result(ready.address)
        console.note(f"models: {', '.join(ready.service.models.names())}")
        if config.page:
            console.note(f"a page to chat: {ready.address}/   for programs: {ready.address}/v1")
        if not ready.keys and config.without_key:
            console.warn("everyone who reaches this address is let in")
        console.note("Ctrl-C stops, once running answers have ended; a second one at once")
        if ready.run() == signal.SIGINT:
            raise KeyboardInterrupt


def _serve_with_vllm(config: ServeConfig, flags: options.Flags) -> None:
    from phicli.serving.settings import base_name, read_keys
    from phicli.serving.vllm import become_vllm, check_vllm, vllm_command, vllm_environment

    warn_of_idle(config, flags)
    check_vllm()
    environment = vllm_environment(config, read_keys(config))
    command = vllm_command(config, base_name(config), console.warn)
    console.note(shlex.join(command))
    become_vllm(command, environment)
