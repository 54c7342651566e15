"""Azure on this machine: the control plane's stub, Azurite for the bytes, a proxy that lets nothing else through."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from azure_servers import Cloud, install_azurite, running

_skipped: list[str] = []


def pytest_terminal_summary(terminalreporter):
    for reason in _skipped:
        terminalreporter.write_line(f"NOT RUN: the tests of Azure, since {reason}", yellow=True, bold=True)


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    reason = install_azurite()
    if reason:
        _skipped.append(reason)
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("azure")) as servers:
        yield servers


@pytest.fixture
def cloud(servers, monkeypatch, tmp_path):
    """An empty Azure, reached by every client of this process and its children through the environment."""
    for name in [n for n in os.environ if n.startswith(("AZURE_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    for name, value in {**servers.environment(), "XDG_CACHE_HOME": str(tmp_path / "cache"),
                        "PHICLI_AZURE_RETRIES": "0", "PHICLI_AZURE_TIMEOUT": "20"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield Cloud(servers)
    assert servers.proxy.refused == [], "a host that is none of the tests' was asked for"


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """start("upload", …): the real command line in a process of its own."""
    running = []

    def begin(*argv: object) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-m", "phicli", *map(str, argv)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with two big files, small ones, an empty one, and ignore files that would leave the weights out."""
    folder = tmp_path / "models" / "phi" / "onnx-ao"
    (folder / "adapters").mkdir(parents=True)
    (folder / "model.onnx.data").write_bytes(os.urandom(5_000_000))
    (folder / "model.onnx").write_bytes(os.urandom(700_001))
    (folder / "adapters" / "travel.onnx_adapter").write_bytes(os.urandom(300_000))
    (folder / "genai_config.json").write_text("{}")
    (folder / "empty.txt").touch()
    (folder / ".gitignore").write_text("*.data\n*.onnx\nadapters/\n")
    (folder / ".amlignore").write_text("*\n")
    return folder
