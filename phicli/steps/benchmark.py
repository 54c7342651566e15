"""How fast a model is: load, first token, prompt and decoding, memory; beside other libraries in the same run."""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phicli.artifacts.names import BENCHMARK, EXPORTED, GENAI_CONFIG, ONNX_FOLDER
from phicli.artifacts.places import check_file_place
from phicli.artifacts.reading import SMALL, read_json
from phicli.artifacts.stages import check_whole, versions, write_sealed
from phicli.benchmarking.figures import compare, rows_of
from phicli.benchmarking.llama_bench import LlamaBench
from phicli.benchmarking.turn import Case, cases
from phicli.benchmarking.turns import Turner, take_turns
from phicli.benchmarking.worker import Contender, Worker
from phicli.config.measuring import BenchmarkConfig
from phicli.errors import BadInput, Missing, PhicliError
from phicli.export.genai_config import read_config as read_genai_config
from phicli.hardware.devices import usable_cores
from phicli.hardware.driver import gpu_name
from phicli.hub.models import find_base, read_config
from phicli.libraries import subdued
from phicli.progress import SILENT, Progress
from phicli.version import __version__

LLAMA_BENCH = "llama-bench"
# What an engine takes where --against names no folder or file.
ALONE = {"torch": "the quantized model under the root", "llama.cpp": "the newest GGUF file under the root",
         "genai": "what genai's own builder makes of the quantized model under the root"}


@subdued()
def benchmark(config: BenchmarkConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure an ONNX model, without an adapter and with each, and what else is named, in turns.

    Every contender is a process of its own; those of one number of threads are loaded together.

    Returns:
        the document that is written to `output` or `root`/benchmark.json (with `path` and no `output` nowhere):
        {"rows": one a test, with llama-bench's and vLLM's names (see `phicli.benchmarking.figures.rows_of`), "rounds",
        "versions", "created"}.

    Raises:
        Missing: no model yet, CUDA wanted and not there, memory. BadInput: no such adapter; a damaged model or
        baseline; more tokens than the context.
    """
    folder = Path(config.path or config.root_folder / ONNX_FOLDER)
    if not (folder / GENAI_CONFIG).is_file():
        raise Missing("no ONNX model there", where=folder, hint="phicli optimize")
    target = Path(config.output or config.root_folder / BENCHMARK) if config.output or not config.path else None
    if target:
        _check_ours(target)
    baseline = _read_baseline(Path(config.baseline)) if config.baseline else None
    check_whole(folder)
    _check_context(config, folder)
    wanted = list(cases(config.numbers("prompt_tokens"), config.new_tokens, config.numbers("depth"),
                        config.numbers("batch")))
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="phicli-benchmark-") as scratch:
        contenders = [*_ours(config, folder), *_others(config, wanted, Path(scratch), progress)]
        counts: list[int | None] = [*config.numbers("threads")]
        for threads in counts or [None]:
            rows += _measured(contenders, threads, wanted, config, progress)
    if baseline is not None:
        compare(rows, baseline)
    document = {"rows": rows, "rounds": config.rounds, "versions": versions(),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if target:
        write_sealed(target, document)
    return document


def _check_context(config: BenchmarkConfig, folder: Path) -> None:
    """Raise BadInput where the longest case does not fit the model's context."""
    context = read_genai_config(folder)["model"]["context_length"]
    beside = max(config.numbers("depth")) + config.new_tokens
    longest = max(config.numbers("prompt_tokens")) + beside
    if longest > context:
        room = context - beside
        raise BadInput(f"--prompt-tokens, --depth and --new-tokens are {longest} tokens, and the model's context is "
                       f"{context}", where=folder, hint=f"phicli benchmark --prompt-tokens {room}" if room > 0 else
                       f"--depth and --new-tokens of less than {context} together")


def _ours(config: BenchmarkConfig, folder: Path) -> Iterator[Contender]:
    from phicli.inference.model_folder import adapters_beside, no_adapter

    there = adapters_beside(folder)
    for name in (None, *(config.adapters or there)):
        if name is not None and name not in there:
            raise no_adapter(folder, name)
        yield Contender(f"phicli + {name}" if name else "phicli", "phicli", str(folder), name, config.runs_on,
                        config.kernels)


def _others(config: BenchmarkConfig, wanted: Sequence[Case], scratch: Path, progress: Progress) -> Iterator[Contender]:
    """Those of --against that can be measured here; why one cannot is told."""
    context = max(case.depth + case.prompt + case.new for case in wanted)
    for name, _, path in (one.partition("=") for one in config.against):
        try:
            if name == "llama.cpp":
                _check_llama()
            if path:
                _check_named(name, Path(path))
            yield Contender(name, name, path or str(_own_model(name, config, scratch, progress)), None, config.device,
                            context=context)
        except PhicliError as e:
            progress.warn(_left_out(name, path, e))


def _left_out(name: str, path: str, error: PhicliError) -> str:
    """Why, and what helps: of what was named, that it may be left to this command."""
    named = path and name in ALONE and Path(path) in (Path(str(error.where)), *Path(str(error.where)).parents)
    hint = f"--against {name} alone takes {ALONE[name]}" if named else error.hint
    return f"{name} is left out: {error}" + (f"; {hint}" if hint else "")


def _check_llama() -> None:
    if not (find_spec("llama_cpp") or shutil.which(LLAMA_BENCH)):
        raise Missing("neither llama-bench is on the PATH nor llama-cpp-python installed",
                      hint="pip install llama-cpp-python")


def _check_named(name: str, place: Path) -> None:
    """Raise BadInput where no model of the kind is there, or a file of a result of phicli's is not as it was."""
    if name == "llama.cpp":
        if not place.is_file():
            raise BadInput("no such file", where=place)
    elif name in ALONE:
        if not place.is_dir():
            raise BadInput("no such folder", where=place)
        if name == "genai" and not (place / GENAI_CONFIG).is_file():
            raise BadInput(f"no ONNX model there: it has no {GENAI_CONFIG}", where=place)
        check_whole(place)


def _own_model(name: str, config: BenchmarkConfig, scratch: Path, progress: Progress) -> Path:
    """The model under the root that another library takes."""
    if name == "torch":
        return find_base(config.root_folder)
    if name == "yardstick":
        return Path(config.path or config.root_folder / ONNX_FOLDER)
    if name == "genai":
        return _built_by_genai(find_base(config.root_folder), config, scratch, progress)
    found = sorted((config.root_folder / EXPORTED).glob("*.gguf"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise Missing("no GGUF file under the root", hint="phicli export --to gguf",
                      also=["--against llama.cpp=FILE.gguf"])
    return found[-1]


def _built_by_genai(base: Path, config: BenchmarkConfig, scratch: Path, progress: Progress) -> Path:
    from phicli.hardware.devices import choose_device

    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", base, "-o", scratch / "genai",
               "-p", "int4", "-e", choose_device(config.device), "-c", scratch / "cache", "--extra_options",
               "hf_token=false"]
    with progress.task("genai's own build", 1, "models") as task:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        task.advance(1)
    if done.returncode:
        raise BadInput(f"genai's builder fails: {done.stderr.strip()[-200:]}", where=base)
    return scratch / "genai"


def _measured(contenders: Sequence[Contender], threads: int | None, wanted: Sequence[Case], config: BenchmarkConfig,
              progress: Progress) -> Iterator[dict[str, Any]]:
    named = {name: path for name, _, path in (one.partition("=") for one in config.against)}
    with ExitStack() as running:
        turners: dict[str, Any] = {}
        for contender in contenders:
            try:
                turners[contender.name] = _turner(contender, threads, running)
            except PhicliError as e:
                if contender.engine == "phicli":
                    raise
                progress.warn(_left_out(contender.name, named[contender.name], e))
        about = {contender.name: _about(contender, turners[contender.name]) for contender in contenders
                 if contender.name in turners}
        for name, case, series in take_turns(turners, wanted, config.rounds, progress):
            yield from rows_of(series, case, about[name])


def _turner(contender: Contender, threads: int | None, running: ExitStack) -> Turner:
    if contender.engine == "llama.cpp" and (program := shutil.which(LLAMA_BENCH)):
        return LlamaBench(program, Path(contender.model), threads or usable_cores(), contender.device)
    return running.enter_context(Worker(contender, threads))


def _about(contender: Contender, turner: Any) -> dict[str, Any]:
    """What is the same in all rows of a contender."""
    from phicli.resources.sizes import size_of_config

    place = Path(contender.model)
    config = read_config(place) if (place / "config.json").is_file() else {"model_type": place.stem}
    size = size_of_config(config, "its config.json")
    files = [place] if place.is_file() else [p for p in place.iterdir() if p.is_file()]
    return {
        "build_commit": f"phicli {__version__}", "cpu_info": _cpu_name(), "gpu_info": gpu_name(),
        "backends": {"phicli": "onnxruntime", "genai": "onnxruntime"}.get(contender.engine, contender.engine),
        "model_filename": contender.model, "model_type": config["model_type"],
        "model_size": sum(path.stat().st_size for path in files), "model_n_params": size.params if size else None,
        "n_threads": turner.threads, "contender": contender.name, "engine": contender.engine,
        "adapter": contender.adapter, "load_ms": turner.load and 1e3 * turner.load}


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def _check_ours(target: Path) -> None:
    """Raise BadInput if what stands at the target is not a result of this command."""
    check_file_place(target)
    if target.exists():
        _read_rows(target, "the file there is no result of phicli benchmark", "name another --output, or move it away")


def _read_baseline(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise BadInput("no such file", where=path, hint="phicli benchmark --json > FILE")
    return _read_rows(path, "no figures of phicli benchmark", "phicli benchmark --json > FILE")


def _read_rows(path: Path, message: str, hint: str) -> list[Mapping[str, Any]]:
    """The rows in a document, or in a list as --format json prints it."""
    found = read_json(path, SMALL)
    rows = found.get("rows") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(
            isinstance(row, dict) and isinstance(row.get("samples_ts"), list) and row["samples_ts"]
            and all(isinstance(x, int | float) and x > 0 for x in row["samples_ts"]) for row in rows):
        raise BadInput(message, where=path, hint=hint)
    return rows
