"""`phicli serve --engine vllm`: how vLLM is started. It is not here itself; a program in its place says what it got."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """import json, os, sys
print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith(("VLLM", "DO_NOT"))}]))
"""


def test_adapters_keep_their_names(two_graphs, tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "ft").mkdir()
    for name in ("cooking", "travel"):
        (tmp_path / "lab" / "ft" / name).symlink_to(two_graphs / name)
    place = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
    place.mkdir(parents=True)
    (place / "main.py").write_text(PROGRAM)
    for folder in (place, place.parent, place.parent.parent):
        (folder / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path / 'site'}"}

    def run(*options):
        return subprocess.run([sys.executable, "-m", "phicli", "serve", "--engine", "vllm", "--root", tmp_path / "lab",
                               "--model", "tiny", *options], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, timeout=60)

    awq = two_graphs / "awq"
    done = run("--path", awq, "--api-key", "secret", "--context", "1024")
    assert done.returncode == 0, done.stderr
    got, variables = json.loads(done.stdout)
    assert got == ["serve", str(awq), "--served-model-name", "awq", "--host", "127.0.0.1", "--port", "8000",
                   "--max-num-seqs", "8", "--max-model-len", "1024", "--enable-lora", "--max-lora-rank", "16",
                   "--max-loras", "2", "--lora-modules", f"cooking={tmp_path / 'lab' / 'ft' / 'cooking'}",
                   f"travel={tmp_path / 'lab' / 'ft' / 'travel'}"]
    assert variables["VLLM_API_KEY"] == "secret" and variables["DO_NOT_TRACK"] == "1" and "secret" not in done.stderr
    assert "--lora-modules travel=" in run("--path", awq, "--adapter", "travel").stderr
    assert run("--path", awq, "--adapter", "paris").returncode == 3
    assert run().returncode == 4  # nothing was quantized
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    missing = run("--path", awq)
    assert missing.returncode == 4 and "pip install vllm" in missing.stderr
