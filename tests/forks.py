"""Commands as processes forked from one that has imported everything; see faults/zygote.py."""

import json
import subprocess
import sys
from pathlib import Path


class Forks:
    """Starts commands, which take their own time only."""

    def __init__(self, environment: dict[str, str] | None = None):
        self.server = subprocess.Popen([sys.executable, Path(__file__).parent / "faults" / "zygote.py"], text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def start(self, *argv: object, cwd: Path, out: Path, **more: object) -> int:
        """The pid of a command whose streams go to `out`.out and `out`.err; more: as the requests have it."""
        request = {"argv": [str(a) for a in argv], "cwd": str(cwd), "out": str(out), "env": {}, **more}
        return self._ask(request)["pid"]

    def wait(self, pid: int) -> int:
        """Its exit code; -9 where it was killed."""
        return self._ask({"wait": pid})["code"]

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()

    def _ask(self, request: dict) -> dict:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())
