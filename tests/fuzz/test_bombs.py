"""Small inputs that ask for a lot: each ends in an error, soon, in a process that may take 1.5 GB."""

import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import phicli

LIMITED = ("import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1500 << 20,) * 2); "
           "from phicli.cli.main import main; sys.exit(main(sys.argv[1:]))")


def squeezed(piece, times):
    """gzip of a piece that is repeated; made without holding it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()


BOMBS = {
    "a line of 2 GB in 9 MB": lambda: squeezed(b" " * (1 << 20), 2048),
    "a gzip file in a gzip file": lambda: gzip.compress(squeezed(b"\0" * (1 << 20), 256)),
    "200,000 brackets": lambda: b"[" * 200_000 + b"\n",
    "objects in objects": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n",
    "a number of a million digits": lambda: b'{"prompt": ' + b"9" * 1_000_000 + b', "response": "a"}\n',
    "100,000 fields": lambda: json.dumps({f"f{i}": i for i in range(100_000)}).encode() + b"\n",
}


def limited(*argv):
    environment = {"PYTHONPATH": str(Path(phicli.__file__).parents[1]), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    return subprocess.run([sys.executable, "-c", LIMITED, *map(str, argv)], capture_output=True, text=True, timeout=60,
                          env=environment)


@pytest.mark.parametrize("name", BOMBS)
def test_files_of_rows(tmp_path, name):
    (tmp_path / "rows.jsonl").write_bytes(BOMBS[name]())
    done = limited("inspect", tmp_path / "rows.jsonl", "--model", "tiny")
    assert done.returncode == 3 and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_header_that_claims_to_be_huge(tmp_path, tiny):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{" * 1000)
    done = limited("doctor", "--model", tmp_path, "--root", tmp_path, "--device", "cpu", "--json")
    model = next(c for c in json.loads(done.stdout)["checks"] if c["check"] == "model")
    assert done.returncode == 4 and "header longer than the file" in model["found"]


def test_settings_in_settings(tmp_path):
    (tmp_path / "phicli.toml").write_text("model = " + "[" * 100_000)
    done = limited("--config", tmp_path / "phicli.toml", "config")
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
