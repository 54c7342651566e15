"""Tasks of lm-eval (EleutherAI's harness), where it is installed, on any stage; no data set is fetched for them."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from phicli.artifacts.reading import read_text
from phicli.errors import BadInput, Missing, UsageError
from phicli.evaluation.figures import log_softmax
from phicli.evaluation.readers import Reader
from phicli.evaluation.stages import Stage
from phicli.inference.runners import greedy
from phicli.progress import Progress
from phicli.text import Encoded, TextCodec
from phicli.workflow.patching import replaced
from phicli.workflow.wording import worded

LONGEST_ANSWER = 256  # tokens, where a task does not say


def read_tasks(names: Sequence[str]) -> list[Any]:
    """Names of lm-eval's own tasks as they are; files (.yaml) read, with nothing in them that runs.

    Raises:
        Missing: lm-eval is not installed. UsageError: it has no task of such a name. BadInput: no such file, or one
        that needs code of its own.
    """
    if names and not find_spec("lm_eval"):
        raise Missing("tasks are run by lm-eval, which is not installed", where="--task",
                      hint="pip install 'phicli[lm-eval]'")
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    if len(files) < len(names):
        from lm_eval.tasks import TaskManager

        known = set(TaskManager().all_tasks)
        if unknown := [name for name in names if name not in {*files, *known}]:
            near = get_close_matches(unknown[0], known, 3)
            raise UsageError(f"lm-eval has no task {unknown[0]}" + (f"; there are: {', '.join(near)}" if near else ""),
                             where="--task", hint="lm_eval ls tasks")
    return [_read_task(Path(name)) if name in files else name for name in names]


def _read_task(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(read_text(file))
    except FileNotFoundError:
        raise BadInput("no such task file", where=file, hint="--task NAME, of lm-eval's or a YAML file's") from None
    except (yaml.YAMLError, RecursionError) as e:
        said = " ".join(str(e).split())[:200]
        raise BadInput(f"not a task that runs without code of its own: {said}", where=file) from None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise BadInput("no task of lm-eval's: it names no 'task'", where=file)
    if strange := {"class", "include", "unsafe_code"} & found.keys():
        raise BadInput(f"'{min(strange)}' is not taken from a file", where=file)
    return found


def run_tasks(tasks: Sequence[Any], stage: Stage, reader: Reader, progress: Progress) -> dict[str, dict[str, Any]]:
    """Figures by task: {"acc,none": 0.5, "acc_stderr,none": 0.1, …}.

    Templates of tasks run in jinja's sandbox.

    Raises:
        BadInput: lm-eval fails, as where a task's data set is not on this machine.
    """
    import lm_eval
    import lm_eval.utils as theirs
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(undefined=theirs.env.undefined, keep_trailing_newline=True)
    sandbox.filters.update(theirs.env.filters)
    with progress.task(f"{stage.name}: tasks", None, "requests") as task, replaced(theirs, "env", sandbox), \
            worded("lm-eval cannot run the tasks (their data have to be on this machine)", stage.folder):
        done = lm_eval.simple_evaluate(
            _harness_model(reader, TextCodec(stage.folder), task), tasks=list(tasks), bootstrap_iters=1000,
            log_samples=False, random_seed=None, numpy_random_seed=None, torch_random_seed=None)
        assert done is not None  # which it is in the other processes of a distributed run
        return {name: {key: value for key, value in found.items() if isinstance(value, int | float)}
                for name, found in done["results"].items()}


def _harness_model(reader: Reader, codec: TextCodec, task: Any) -> Any:
    """An lm_eval.api.model.LM of a stage; the class is made here, as lm-eval may not be there."""
    from lm_eval.api.model import LM

    begin = codec.tokens.begin or codec.end_of_text

    class HarnessModel(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [self._score(*self._split(*request.args)) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [self._rolling(codec.encode_text(request.args[0])) for request in requests]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [self._generate(*request.args) for request in requests]

        def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            """As lm-eval's own models: blanks at the end of the context are the continuation's."""
            blank = len(context) - len(context.rstrip())
            context, continuation = context[: len(context) - blank], context[len(context) - blank :] + continuation
            before, whole = codec.encode_text(context), codec.encode_text(context + continuation)
            return [*begin, *before], whole[len(before) :]

        def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
            task.advance(1)
            ids = [*context, *continuation][-reader.context :]
            if not continuation:
                return 0.0, True
            start = max(1, len(ids) - len(continuation))
            row = Encoded.counted_from(ids, start)
            log_probs = log_softmax(reader(row))
            said = [log_probs[at, ids[place]] for at, place in enumerate(row.targets)]
            return float(sum(said)), bool((log_probs.argmax(-1) == ids[start:]).all())

        def _rolling(self, ids: list[int]) -> float:
            """Each token once, after as much of what comes before it as there is room for in its piece."""
            room = reader.context - 1
            pieces = [(ids[at - 1 : at] if at else begin, ids[at : at + room]) for at in range(0, len(ids), room)]
            return sum(self._score(before, piece)[0] for before, piece in pieces)

        def _generate(self, context: str, settings: dict[str, Any]) -> str:
            task.advance(1)
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else until
            most = min(int(settings.get("max_gen_toks") or LONGEST_ANSWER), reader.context // 2)
            ids = [*begin, *codec.encode_text(context)][-(reader.context - most) :]
            answer = codec.decode(greedy(reader.runner, ids, most, codec.end_of_text))
            return re.split("|".join(map(re.escape, until)), answer, maxsplit=1)[0] if until else answer

    return HarnessModel()
