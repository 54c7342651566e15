"""Some hundred clients, most of them rude; `benchmarks/serve_soak.py` has the clients, and does the same for longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_soak.py"


def soak(served, requests):
    done = subprocess.run([sys.executable, SCRIPT, "--url", served.address, "--requests", str(requests)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_none_is_lost_and_memory_is_flat(served):
    soak(served, 100)
    process = psutil.Process(os.getpid())
    memory, files, bodies = process.memory_info().rss, process.num_fds(), served.service.bodies
    found = soak(served, 300)
    assert sum(found["kinds"].values()) == 300 and not found["faults"] and len(found["kinds"]) == 7
    assert served.idle() and not served.service.answers
    assert served.service.bodies == bodies == 0
    assert process.memory_info().rss - memory < 20 << 20
    assert process.num_fds() - files < 8
