"""Work spread over processes: order, errors, and what becomes of them when it ends early."""

import os
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from phicli.dataset.counting import Histogram
from phicli.errors import BadInput, Missing
from phicli.hardware.processes import spread
from phicli.text import TextTemplate

OTHERS: set[int] = set()  # servers of other tests


@pytest.fixture(autouse=True)
def others():
    OTHERS.update(child.pid for child in psutil.Process().children(recursive=True))


def children():
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in OTHERS]


@pytest.mark.parametrize(("processes", "alone"), [(1, 0), (2, 0), (3, 5), (2, 100)])
def test_results_come_in_order_and_nothing_is_left(processes, alone):
    texts = [f"{i} {{a{i}}}" for i in range(40)]
    found = list(spread(TextTemplate, partial(partial, TextTemplate), texts, processes, alone))
    assert [template.fields for template in found] == [TextTemplate(text).fields for text in texts]
    assert children() == []


def test_few_tasks_start_no_process():
    with closing(spread(Histogram, partial(partial, Histogram), [[1], [2]], 2, alone=2)) as results:
        assert [result.total for result in results if not children()] == [1, 2]


def test_no_tasks():
    assert list(spread(Histogram, partial(partial, Histogram), [], 2)) == []


def test_an_error_comes_through_and_ends_the_processes():
    with pytest.raises(BadInput, match="needs fields"):
        list(spread(TextTemplate, partial(partial, TextTemplate), ["{a}", "no field", "{b}"], 2))
    assert children() == []


def test_an_error_of_the_tasks_ends_the_processes():
    def tasks():
        yield [1]
        yield [2]
        raise BadInput("no more")

    with pytest.raises(BadInput, match="no more"):
        list(spread(Histogram, partial(partial, Histogram), tasks(), 2))
    assert children() == []


def test_a_process_that_is_ended_from_outside_is_an_error():
    def tasks():
        yield 0.0
        for child in children():
            child.kill()
        yield from [0.0] * 10

    with pytest.raises(Missing, match="was ended"):
        list(spread(time.sleep, partial(partial, time.sleep), tasks(), 2))
    assert children() == []


def test_they_end_with_the_one_that_has_started_them(tmp_path):
    script = tmp_path / "script.py"  # without a guard: it is not run again in the processes
    script.write_text(
        "import os, time\nfrom functools import partial\nfrom phicli.hardware.processes import spread, _Pool\n"
        "open('runs', 'a').write('x')\npool = _Pool(partial(partial, time.sleep), 2)\n"
        "print(*(p.pid for p in pool.processes), flush=True)\nlist(pool.map(2, iter([2])))\n")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen([sys.executable, script], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": paths}) as started:
        pids = [int(pid) for pid in started.stdout.readline().split()]
        assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
        started.kill()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)
    assert alive == []
    assert (tmp_path / "runs").read_text() == "x"
