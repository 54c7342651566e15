"""docs/python.md: its blocks run in order as one program, and its program without phicli answers as phicli does."""

import os
import re
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import phicli

ROOT = Path(__file__).parents[2]
QUESTION = "What should I see first in Kyoto?"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.M | re.S)
ALONE = [block for block in BLOCKS if "import onnxruntime_genai" in block]
LESSONS = [block for block in BLOCKS if block not in ALONE]


def run(program: Path, *arguments: object) -> str:
    done = subprocess.run([sys.executable, program, *map(str, arguments)], cwd=program.parent, capture_output=True,
                          text=True, timeout=280, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(notebook):
    """Where the notebook ran. What the page makes with the same settings is there already, under the root it names."""
    _, place = notebook
    shutil.copytree(place / "models" / "notebook", place / "models" / "tiny")
    return place


def test_the_blocks_run(folder):
    program = folder / "page.py"
    program.write_text("\n".join(LESSONS))
    before = (folder / "models" / "tiny" / "ft" / "travel" / "phicli.json").stat().st_mtime_ns
    out = run(program)
    assert (folder / "models" / "tiny" / "ft" / "travel" / "phicli.json").stat().st_mtime_ns == before
    assert (folder / "models" / "tiny" / "nearest" / "phicli.json").is_file()
    assert re.search(r"^quantize 4 layers$", out, re.M)  # what Lines printed
    assert re.search(r"^BadInput data/none.jsonl ", out, re.M)
    assert re.search(r"^\['travel'\] 2048 (cpu|cuda)$", out, re.M)  # names of adapters, context, device


@pytest.mark.parametrize("layout", ["inputs", "resident", "fused"])
def test_the_result_runs_without_phicli(folder, layout):
    program, = ALONE
    assert "phicli" not in program
    (folder / "run.py").write_text(program)
    built = phicli.optimize("tiny", root=folder / "models" / "tiny", device="cpu", adapter_layout=layout,
                            output=folder / layout).folder
    answer = run(folder / "run.py", built, "travel", QUESTION).rstrip("\n")
    session = phicli.Session(built, kernels="onnxruntime")
    ours, bare = (phicli.Conversation(session, adapter=name).ask(QUESTION).text for name in ("travel", None))
    assert len(ours) > 80 and not answer.startswith(bare)
    # Equal, but where a greedy loop is ended here; or apart from a token on that is as likely as the other, since the
    # graph's own functions and our library add in another order.
    codec = session.codec
    said, again = codec.encode_text(answer), codec.encode_text(ours)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(said, again, strict=False))))
    if same < min(len(said), len(again)):
        asked = codec.encode_chat([{"role": "user", "content": QUESTION}])
        logits = session.logits([*asked, *again[:same]], "travel")[-1]
        assert np.argmax(logits) in (said[same], again[same])
        assert abs(logits[said[same]] - logits[again[same]]) < 0.3  # of scores that reach over 20
