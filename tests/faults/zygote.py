"""A process that has imported everything and forks a child for each command, so that commands take their own time only.

Requests and answers are lines of JSON: {"argv", "cwd", "env", "out", "limit", "killed_at"} -> {"pid"},
{"wait": pid} -> {"code"}. killed_at: [module, class or nothing, function, n] kills the child at the n-th call, before
it acts. (The tests have threads, and what is forked from a process with threads may wait for them for ever.)
"""

import itertools
import json
import os
import resource
import signal
import sys
import traceback
from importlib import import_module

from phicli.cli import main as cli
from phicli.libraries import subdued

IMPORTED = ("onnxruntime_genai", "peft", "phicli.quantization.olive_pass", "phicli.steps.evaluate",
            "phicli.training.passes", "phicli.training.training", "phicli.export.olive_pass",
            "phicli.inference.conversation")


def child(request: dict) -> None:
    """Become the command: its folder, environment, streams and limits, then the real main()."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.argv = ["phicli", *request["argv"]]
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{request['out']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    if request.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
    code = 1
    if request.get("killed_at"):
        kill_at(*request["killed_at"])
    try:
        code = int(cli.main(request["argv"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def kill_at(module: str, owner: str, name: str, after: int) -> None:
    where = getattr(import_module(module), owner) if owner else import_module(module)
    original, calls = getattr(where, name), itertools.count(1)

    def step(*args, **kwargs):
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(where, name, step)


def serve() -> None:
    with subdued():  # libraries read the environment when they are imported
        for name in IMPORTED:
            import_module(name)
        answer_all()


def answer_all() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    serve()
