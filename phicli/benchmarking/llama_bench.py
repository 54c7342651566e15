"""llama.cpp's own llama-bench as a contender: a process of it for each turn."""

import json
import subprocess
from pathlib import Path
from typing import Any

from phicli.benchmarking.turn import Case, Turn
from phicli.errors import BadInput

SECONDS = 3600


class LlamaBench:
    """Args: program: on the PATH. model: a GGUF file. threads: of the CPU. device: "cpu" keeps off a GPU."""

    load: float | None = None  # it does not say

    def __init__(self, program: str, model: Path, threads: int, device: str):
        self.threads = threads
        self._command = [program, "-m", str(model), "-t", str(threads), "-r", "1", "-o", "json",
                         *(["-ngl", "0"] if device == "cpu" else [])]

    def turn(self, case: Case) -> Turn:
        """The prompt after the context, then the tokens after both. Raises BadInput: it fails; rows over 1."""
        if case.rows > 1:
            raise BadInput("llama-bench runs one row")
        prompt = self._run(["-p", str(case.prompt), "-n", "0", "-d", str(case.depth)])
        decoded = self._run(["-p", "0", "-n", str(case.new), "-d", str(case.depth + case.prompt)])
        return Turn(prompt["avg_ns"] / 1e9, (decoded["avg_ns"] / 1e9 / case.new,) * case.new)

    def _run(self, sizes: list[str]) -> dict[str, Any]:
        done = subprocess.run([*self._command, *sizes], capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            raise BadInput(f"llama-bench ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found
