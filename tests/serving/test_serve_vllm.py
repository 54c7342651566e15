"""`phicli serve --engine vllm`: how vLLM is started. It is not here itself; a program in its place says what it got."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phicli.config import ServeConfig
from phicli.errors import BadInput, Missing
from phicli.serving.vllm import vllm_command

PROGRAM = """import json, os, sys
print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith(("VLLM", "DO_NOT"))}]))
"""


def config(root, path, **more):
    return ServeConfig(model="tiny", root=str(root), path=str(path) if path else None, engine="vllm", **more)


def test_adapters_keep_their_names(two_graphs, tmp_path):
    (tmp_path / "ft").mkdir()
    for name in ("cooking", "travel"):
        (tmp_path / "ft" / name).symlink_to(two_graphs / name)
    awq = two_graphs / "awq"
    assert vllm_command(config(tmp_path, awq, context=1024), "mine")[3:] == [
        "serve", str(awq), "--served-model-name", "mine", "--host", "127.0.0.1", "--port", "8000", "--max-num-seqs",
        "8", "--max-model-len", "1024", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--lora-modules",
        *(json.dumps({"name": name, "path": str(tmp_path / "ft" / name)}) for name in ("cooking", "travel"))]
    one = vllm_command(config(tmp_path, awq, adapters=("cooking",)), "mine")
    assert one[one.index("--max-lora-rank") + 1] == "8" and len(one) == one.index("--lora-modules") + 2
    with pytest.raises(BadInput, match="there are: cooking, travel"):
        vllm_command(config(tmp_path, awq, adapters=("paris",)), "mine")
    with pytest.raises(Missing, match="no quantized model"):
        vllm_command(config(tmp_path, None), "mine")


def test_an_adapter_with_scales_of_its_own_is_refused(two_graphs, tmp_path):
    folder = tmp_path / "ft" / "travel"
    shutil.copytree(two_graphs / "travel", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    alpha = settings["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {".*": 2 * alpha}}))
    with pytest.raises(BadInput, match="one for all"):
        vllm_command(config(tmp_path, two_graphs / "awq"), "mine")
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {".*": alpha}}))
    assert "--enable-lora" in vllm_command(config(tmp_path, two_graphs / "awq"), "mine")


def test_the_process_becomes_vllm(two_graphs, tmp_path):
    place = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
    place.mkdir(parents=True)
    (place / "main.py").write_text(PROGRAM)

    def run(*paths):
        sources = map(str, [Path(__file__).parents[2], *paths])
        command = [sys.executable, "-m", "phicli", "serve", "--engine", "vllm", "--path", two_graphs / "awq", "--root",
                   tmp_path, "--api-key", "secret"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sources)})

    done = run(tmp_path / "site")
    assert done.returncode == 0, done.stderr
    got, variables = json.loads(done.stdout)
    assert got[:4] == ["serve", str(two_graphs / "awq"), "--served-model-name", "awq"] and "--enable-lora" not in got
    assert variables["VLLM_API_KEY"] == "secret" and variables["DO_NOT_TRACK"] == "1" and "secret" not in done.stderr
    missing = run()
    assert missing.returncode == 4 and "pip install vllm" in missing.stderr
