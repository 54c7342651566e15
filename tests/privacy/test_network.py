"""The whole lab reaches for no network; and the guards that say so see what they should."""

import json
import os
import sys
from pathlib import Path

import pytest
from guard import guarded

import phicli

DATA = Path(__file__).parents[2] / "data"
SETTINGS = """model = "tiny"
device = "cpu"
[finetune]
max_steps = 4
lora_r = 4
[quantize]
samples = 8
seq_len = 64
[evaluate]
rows = 4
[chat]
max_new_tokens = 8
"""
TRIES = """
import contextlib, ctypes, socket, struct
with contextlib.suppress(OSError):
    socket.create_connection(("198.51.100.7", 443), timeout=2)
with contextlib.suppress(OSError):
    socket.getaddrinfo("telemetry.example.org", 443)
libc = ctypes.CDLL(None)  # native code: Python's guard is not asked
address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(443), bytes([198, 51, 100, 8]))
libc.connect(libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0), address, len(address))
"""


@pytest.fixture
def environment(tmp_path):
    """As a user has it: none of the variables that phicli sets itself, a home with nothing in it, no CI."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "HF_HUB_OFFLINE") and "TELEMETRY" not in k}
    source = str(Path(phicli.__file__).parents[1])
    return {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": source, "OMP_NUM_THREADS": "2"}


def test_each_guard_sees_what_it_is_for(tmp_path, environment):
    seen = guarded([sys.executable, "-c", TRIES], tmp_path / "guard", environment)
    assert seen.code == 0, seen.err
    assert {line.split()[2] for line in seen.python} == {"socket.connect", "socket.getaddrinfo"}
    assert not any("198, 51, 100, 8" in line or "100.8" in line for line in seen.python)  # native: not Python's to see
    if seen.system is not None:
        assert any("198.51.100.8" in line for line in seen.system)
        assert any("198.51.100.7" in line for line in seen.system)
    if seen.kernel is not None:
        assert seen.kernel["connections begun"] == 2
        assert seen.kernel["datagrams sent"] > 0  # the name that was asked for


def test_the_whole_lab_reaches_for_no_network(tmp_path, environment):
    (tmp_path / "phicli.toml").write_text(SETTINGS)
    (tmp_path / "home").mkdir()
    phi = [sys.executable, "-m", "phicli", "--config", str(tmp_path / "phicli.toml")]
    root = ["--root", str(tmp_path / "root")]
    commands = [
        [*phi, "run", *root, "--data", str(DATA / "data_sample_travel.jsonl"), "--eval-data",
         str(DATA / "data_eval_travel.jsonl"), "--json"],
        [*phi, "doctor", *root, "--json"],
        [*phi, "chat", *root, "--adapter", "travel", "--prompt", "Where is Kyoto?"],
    ]
    for number, command in enumerate(commands):
        seen = guarded(command, tmp_path / f"guard{number}", environment)
        assert seen.code == 0, seen.err
        assert seen.processes >= 1
        assert seen.network == [], command
        assert seen.pickles == [], command
        if number == 0:
            assert [step["name"] for step in json.loads(seen.out)][-1] == "chat"
            for step in ("quantize", "finetune", "optimize"):
                assert f"{step} needs about " in seen.err


PROGRAM = """
import phicli
more = {"root": "root", "device": "cpu"}
phicli.quantize("tiny", samples=8, seq_len=64, **more)
phicli.finetune("tiny", data=DATA, max_steps=2, lora_r=4, **more)
folder = phicli.optimize("tiny", **more).folder
phicli.evaluate("tiny", eval_data=DATA, rows=2, **more)
print(phicli.Conversation(phicli.Session(folder), adapter="travel", max_new_tokens=8).ask("Where is Kyoto?").text)
"""


def test_a_program_that_uses_the_library_reaches_for_no_network(tmp_path, environment):
    (tmp_path / "home").mkdir()
    program = f"import os; os.chdir({str(tmp_path)!r}); DATA = {str(DATA / 'data_eval_travel.jsonl')!r}\n{PROGRAM}"
    seen = guarded([sys.executable, "-c", program], tmp_path / "guard", environment)
    assert seen.code == 0, seen.err
    assert seen.network == [] and seen.pickles == []


def test_telemetry_is_off_before_a_library_is_imported(tmp_path, environment):
    code = (
        "import sys, os, json, phicli.cli.main; from phicli.libraries import subdued; "
        "assert not any(m in sys.modules for m in ('olive', 'onnxruntime', 'onnxruntime_genai', 'huggingface_hub')); "
        "quiet = subdued(); quiet.__enter__(); from huggingface_hub import constants; "
        "from olive.telemetry.telemetry import Telemetry; "
        "import phicli.quantization.olive_pass, phicli.training.passes, phicli.export.olive_pass; "
        "names = [n for n in os.environ if 'TELEMETRY' in n]; "
        "print(json.dumps({'set': {n: os.environ[n] for n in names}, 'hub': constants.HF_HUB_DISABLE_TELEMETRY, "
        "'olive': getattr(Telemetry, '_instance', None) is not None}))"
    )
    seen = guarded([sys.executable, "-c", code], tmp_path / "guard", environment)
    assert seen.code == 0, seen.err
    found = json.loads(seen.out.splitlines()[-1])
    assert {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}.items() \
        <= found["set"].items()
    assert found["hub"] is True
    assert found["olive"] is False  # the object that sends a heartbeat when it is made was never made
    assert seen.network == []
