"""The folder that a container image is built from: Dockerfile, phicli, what pip installs, start script, model."""

import contextlib
import json
import shlex
import shutil
from pathlib import Path

from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.names import GENAI_CONFIG, ONNX_FOLDER
from phicli.artifacts.package import zip_package
from phicli.artifacts.places import check_own_place
from phicli.artifacts.publishing import publishing
from phicli.config.deploy import DeployConfig
from phicli.errors import BadInput, Missing, PhicliError
from phicli.export.for_vllm import choose_adapters, choose_checkpoint, largest_rank, write_adapters
from phicli.export.sources import Source
from phicli.hub.models import find_base
from phicli.progress import SILENT, Progress
from phicli.version import tested_versions

PORT, PLACE = 8000, "model"
KEYS = "/run/secrets/api-key"  # in the container: a file with keys, one a line
DOCKERFILE, IGNORED, CODE, NEEDS, START = "Dockerfile", ".dockerignore", "phicli.zip", "requirements.txt", "serve.sh"
GUARD = Path(__file__).parent.parent / "serving" / "vllm_guard.py"  # goes into vLLM's image, where phicli is not
MOST_AT_ONCE = 8  # adapters in a batch of vLLM's, each of which takes memory
BASE = "base"  # folder of the model without an adapter, under vLLM
MADE_BY = "Made by phicli deploy"  # at the beginning of what it may write anew
# What `phicli serve` imports, and no more: no torch, no transformers.
PACKAGES = ("filelock", "jinja2", "llguidance", "ml-dtypes", "numpy", "onnx", "packaging", "prometheus-client",
            "protobuf", "psutil", "pydantic", "rich", "safetensors", "starlette", "tokenizers", "tomlkit", "typer",
            "uvicorn")
RUNTIMES = {"cpu": ("onnxruntime", "onnxruntime-genai"),
            "cuda": ("onnxruntime-gpu", "onnxruntime-genai-cuda", "nvidia-cuda-nvrtc")}
TWIN = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-genai": "onnxruntime-genai-cuda"}  # released together
BASES = {"cpu": "python:3.11-slim-bookworm", "cuda": "nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04"}

OURS = """\
FROM {base}
# A compiler: the ops of adapters are compiled for the machine that runs them.
# hadolint ignore=DL3008
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends {system} \\
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY {needs} .
RUN python3 -m venv /app/venv && /app/venv/bin/pip install --no-cache-dir --requirement {needs}
COPY {code} {start} ./
RUN /app/venv/bin/python -m zipfile -e {code} /app/code && rm {code} \\
 && useradd --create-home --uid 10001 phicli
{model}ENV PATH=/app/venv/bin:$PATH PYTHONPATH=/app/code PYTHONUNBUFFERED=1
USER 10001
EXPOSE {port}
HEALTHCHECK --start-period=120s CMD ["python", "-c", \
"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/health')"]
CMD ["sh", "/app/{start}"]
"""
VLLM = """\
FROM {base}
WORKDIR /app
COPY {start} {guard} ./
{model}ENV PYTHONPATH=/app VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1
EXPOSE {port}
ENTRYPOINT ["sh", "/app/{start}"]
"""
START_OURS = """\
#!/bin/sh
# Azure ML puts the model where AZUREML_MODEL_DIR says, and asks for keys itself. Elsewhere keys are in {keys}.
set -eu
config=$(find "${{AZUREML_MODEL_DIR:-/app/{place}}}" -name {config} | head -n 1)
if [ -n "${{AZUREML_MODEL_DIR:-}}" ]; then set -- --without-key; else set -- --api-key-file {keys}; fi
exec python -m phicli serve --path "$(dirname "$config")" --name {name} --host 0.0.0.0 --port {port} \\
  --device {device} "$@"
"""
START_VLLM = """\
#!/bin/sh
# Azure ML puts the model where AZUREML_MODEL_DIR says, and asks for keys itself. Elsewhere keys are in {keys}.
set -eu
config=$(find "${{AZUREML_MODEL_DIR:-/app/{place}}}" -path '*/{base}/config.json' | head -n 1)
model=$(dirname "$(dirname "$config")")
if [ -z "${{AZUREML_MODEL_DIR:-}}" ]; then
  [ -f {keys} ] || {{ echo 'no file with a key at {keys}' >&2; exit 1; }}
  VLLM_API_KEY=$(sed -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^#/d' -e '/^$/d' {keys})
  [ "$(printf '%s\\n' "$VLLM_API_KEY" | grep -c .)" = 1 ] || {{ echo 'vLLM needs one key, in {keys}' >&2; exit 1; }}
  export VLLM_API_KEY
fi
exec python3 -m vllm.entrypoints.cli.main serve "$model/{base}" --served-model-name {name} \\
  --host 0.0.0.0 --port {port} --middleware {guard}.Guard --allowed-origins '[]'{adapters}
"""


def build_context(config: DeployConfig, output: Path, model: bool = True, progress: Progress = SILENT) -> Path:
    """Write the folder; nothing of it is a link. model: with the model in it, else it is mounted where it runs.

    Raises:
        Missing: no model to serve. BadInput: as `choose_checkpoint` and `choose_adapters`, or a folder with other
            things there.
    """
    _check_output(output)
    check_served(config)
    adapters = _adapters(config, progress)
    with publishing(output) as fresh:
        copied = f"COPY {PLACE} {PLACE}\n" if model else ""
        (fresh / DOCKERFILE).write_text(f"# {MADE_BY}\n{_dockerfile(config, copied)}")
        (fresh / START).write_text(_start(config, adapters))
        names = [DOCKERFILE, START, *([PLACE] if model else [])]
        if config.engine == "vllm":
            shutil.copyfile(GUARD, fresh / GUARD.name)
            names.append(GUARD.name)
        else:
            (fresh / NEEDS).write_text("\n".join(requirements(config.processor)) + "\n")
            zip_package(fresh / CODE)
            names += [NEEDS, CODE]
        (fresh / IGNORED).write_text("\n".join(["*", *(f"!{name}" for name in names)]) + "\n")
        if model:
            _collect(config, adapters, fresh / PLACE)
    return output


def _check_output(output: Path) -> None:
    """Raise BadInput unless a folder that is replaced has nothing in it but what was made here."""
    check_own_place(output / DOCKERFILE, MADE_BY, "Dockerfile")
    own = (DOCKERFILE, IGNORED, START, NEEDS, CODE, PLACE, GUARD.name)
    strange = [path.name for path in sorted(output.iterdir()) if path.name not in own] if output.is_dir() else []
    if strange:
        raise BadInput(f"'{strange[0]}' there is not of phicli deploy, and would be lost", where=output,
                       hint="name another folder with --output")


def requirements(processor: str) -> list[str]:
    """What pip installs into the image: the versions that the tests ran with."""
    tested = {name.lower().replace("_", "-"): version for name, version in tested_versions().items()}
    return [f"{name}=={version}" if (version := tested.get(TWIN.get(name, name))) else name
            for name in sorted((*PACKAGES, *RUNTIMES[processor]))]


def collect_model(config: DeployConfig, target: Path, progress: Progress = SILENT) -> Path:
    """A copy of what is served: the ONNX model with its adapters, or for vLLM the checkpoint and PEFT folders.

    It takes the place of an earlier one, of which nothing stays.

    Raises:
        Missing: there is none. BadInput: as `build_context`.
    """
    check_served(config)
    adapters = _adapters(config, progress)
    with publishing(target) as fresh:
        _collect(config, adapters, fresh)
    return target


def check_served(config: DeployConfig) -> None:
    """Raises Missing: nothing is there to serve. BadInput: vLLM cannot read what is there."""
    if config.engine == "vllm":
        choose_checkpoint(None, config.root_folder)
        return
    folder, begun = config.root_folder / ONNX_FOLDER, False
    if (folder / GENAI_CONFIG).is_file():
        return
    with contextlib.suppress(PhicliError):
        begun = bool(find_base(config.root_folder))
    raise Missing("no optimized model here yet", where=folder, hint="phicli optimize" if begun else "phicli run")


def _collect(config: DeployConfig, adapters: dict[str, Source], target: Path) -> Path:
    if config.engine == "phicli":
        _copy(config.root_folder / ONNX_FOLDER, target)
    else:
        _copy(choose_checkpoint(None, config.root_folder), target / BASE)
        write_adapters(adapters, target / "adapters", BASE)
    return target


def _adapters(config: DeployConfig, progress: Progress) -> dict[str, Source]:
    """Those that vLLM is given."""
    if config.engine != "vllm":
        return {}
    return choose_adapters((), config.root_folder, choose_checkpoint(None, config.root_folder),
                           config.model_name, progress.warn)


def _copy(folder: Path, target: Path) -> None:
    """All files that are not hidden; begun again where another folder takes the place of the one that is copied."""
    copied: list[Path] = []

    def copy() -> None:
        while copied:
            copied.pop().unlink(missing_ok=True)
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                copied.append(target / name)
                shutil.copyfile(path, target / name)

    of_one_generation(folder, copy)


def _dockerfile(config: DeployConfig, model: str) -> str:
    if config.engine == "vllm":
        return VLLM.format(base=config.vllm_image, start=START, guard=GUARD.name, model=model, port=PORT)
    system = "gcc libc6-dev" + (" python3 python3-venv" if config.processor == "cuda" else "")
    return OURS.format(base=BASES[config.processor], system=system, needs=NEEDS, code=CODE, start=START, model=model,
                       port=PORT)


def _start(config: DeployConfig, adapters: dict[str, Source]) -> str:
    name = shlex.quote(config.model_name)  # as in requests to `phicli serve`
    if config.engine == "phicli":
        return START_OURS.format(keys=KEYS, place=PLACE, config=GENAI_CONFIG, name=name, port=PORT,
                                 device=config.processor)
    return START_VLLM.format(keys=KEYS, place=PLACE, port=PORT, base=BASE, name=name, guard=GUARD.stem,
                             adapters=_lora(adapters))


def _lora(adapters: dict[str, Source]) -> str:
    if not adapters:
        return ""
    return (f" \\\n  --enable-lora --max-lora-rank {largest_rank(adapters)} "
            f"--max-loras {min(len(adapters), MOST_AT_ONCE)} --lora-modules " + " ".join(map(_module, adapters)))


def _module(name: str) -> str:
    """An adapter for vLLM; where the model is, only the script knows."""
    before, after = f'{{"name": {json.dumps(name)}, "path": "', json.dumps(f"/adapters/{name}")[1:] + "}"
    return shlex.quote(before) + '"$model"' + shlex.quote(after)
