"""A process with one model loaded, which measures when it is its turn. Both ends of the pipe are here."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phicli import errors
from phicli.benchmarking.turn import Case, Turn, measure
from phicli.errors import BadInput, PhicliError


@dataclass(frozen=True)
class Contender:
    """A model as one library runs it.

    name: as shown. engine: "phicli", "genai", "torch", "llama.cpp", or "yardstick", which looks at no model.
    model: folder, or GGUF file. adapter: its name; of torch a PEFT folder. device, kernels: as `Session` has them.
    context: tokens that there has to be room for.
    """

    name: str
    engine: str
    model: str
    adapter: str | None = None
    device: str = "auto"
    kernels: str = "auto"
    context: int = 0


class Worker:
    """The process of a contender; it ends with the `with` block, and when this process ends.

    Args:
        threads: of the CPU; None: as many as `usable_cores` says. python: another interpreter, which sees nothing of
            this one's packages but phicli.

    Raises:
        PhicliError: what went wrong while it loaded, as here.
    """

    def __init__(self, contender: Contender, threads: int | None = None, python: str | None = None):
        path = [str(Path(__file__).parents[2])] if python else sys.path
        begin = f"import sys; sys.path[{'0:0' if python else ':'}] = {path!r}; from {__name__} import main; main()"
        environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.contender = contender
        # A session of its own: Ctrl-C reaches this process only, which ends the others.
        self._process = subprocess.Popen([python or sys.executable, "-c", begin, json.dumps(asdict(contender))],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         text=True, env=environment, start_new_session=True)
        try:
            loaded = self._receive()
        except BaseException:
            self.close()
            raise
        self.load: float = loaded["load"]
        self.threads: int = loaded["threads"]

    def turn(self, case: Case) -> Turn:
        """Measure once. Raises PhicliError: what the process raised, or it was ended."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(asdict(case)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is read
        found = self._receive()
        return Turn(**{**found, "steps": tuple(found["steps"])})

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BadInput(f"the process ended with {self._process.wait()}, maybe for lack of memory",
                           where=self.contender.model)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            kind = getattr(errors, found["kind"], BadInput)
            raise kind(found["error"], where=found["where"], hint=found["hint"], also=found["also"])
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.__exit__(None, None, None)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def main() -> None:
    """The process: a contender as JSON in its first argument, a case a line on stdin, an answer a line on stdout."""
    from phicli.hardware.devices import usable_cores
    from phicli.hardware.driver import gpu_memory_used
    from phicli.libraries import subdued

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # genai and others print too

    def tell(said: Mapping[str, Any]) -> None:
        out.write(json.dumps(said) + "\n")
        out.flush()

    contender = Contender(**json.loads(sys.argv[1]))
    try:
        with subdued():
            before = gpu_memory_used()
            begun = time.perf_counter()
            runner = _load(contender)
            tell({"load": time.perf_counter() - begun, "threads": usable_cores()})
            for line in sys.stdin:
                turn = measure(runner, Case(**json.loads(line))).told()
                used = gpu_memory_used()
                tell({**turn, "memory": _peak_memory(),
                      "gpu_memory": used - before if used is not None and before is not None else None})
    except PhicliError as e:
        tell({"error": e.message, "where": str(e.where or ""), "hint": e.hint, "also": e.also,
              "kind": type(e).__name__})
    except Exception as e:
        said = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        tell({"error": f"{contender.engine} cannot run it: {said}", "where": contender.model, "hint": None, "also": (),
              "kind": "BadInput"})


def _load(contender: Contender) -> Any:
    from phicli.hardware.devices import usable_cores
    from phicli.inference import runners

    model = Path(contender.model)
    if contender.engine == "phicli":
        from phicli.inference.session import Session

        session = Session(model, contender.device, contender.kernels, adapters=contender.adapter is not None)
        if contender.adapter:
            session.load_adapter(contender.adapter)
        return runners.SessionRunner(session, contender.adapter, endless=True)
    if contender.engine == "torch":
        from phicli.inference.torch_model import load_torch

        return runners.TorchRunner(load_torch(model, contender.device, Path(contender.adapter) if contender.adapter
                                              else None))
    if contender.engine == "genai":
        return runners.GenaiRunner(model, usable_cores())
    if contender.engine == "yardstick":
        return runners.Yardstick(usable_cores())
    return runners.LlamaRunner(model, usable_cores(), contender.context)


def _peak_memory() -> int | None:
    """Resident bytes at most; the system's own figure for children may be that of the process that started them."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import psutil

        return int(psutil.Process().memory_info().rss)
