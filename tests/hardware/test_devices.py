"""How many cores a model may keep busy."""

import os
import subprocess
import sys

import pytest

from phicli.hardware.devices import usable_cores

THREADS = """
import os, sys
from pathlib import Path
from phicli.inference.session import Session
session = Session(Path(sys.argv[1]))
print(len(os.listdir("/proc/self/task")))
"""


def test_cores_are_those_of_the_affinity_and_the_containers_share(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    all_of_them = usable_cores(tmp_path)
    assert 1 <= all_of_them <= os.cpu_count()
    for quota, wanted in (("max 100000", all_of_them), ("50000 100000", 1), ("100000 100000", 1), ("", all_of_them)):
        (tmp_path / "cpu.max").write_text(quota)
        assert usable_cores(tmp_path) == wanted, quota
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert usable_cores() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert usable_cores(tmp_path) == all_of_them


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_a_session_on_a_cpu_takes_as_many_threads(optimized):
    def threads(cores: int) -> int:
        own = {"OMP_NUM_THREADS": str(cores), "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", THREADS, optimized / "onnx-ao"], text=True, check=True,
                              capture_output=True, env={**os.environ, **own})
        return int(done.stdout)

    assert threads(4) - threads(1) >= 3  # the session adds its own to the one that is there
