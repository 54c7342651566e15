"""Azure on this machine: the control plane's stub, Azurite for the bytes, a proxy that lets nothing else through."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import azure_stub
import pytest
from azure_certificates import make_certificates
from azure_front import serve_front
from azure_proxy import Proxy
from azure_stub import ACCOUNT, CONTAINER, GROUP, KEY, SUBSCRIPTION, WORKSPACE

HERE = Path(__file__).parent
AZURITE = HERE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
STORAGE_HOST = r"[a-z0-9]+\.blob\.core\.windows\.net"
SERVICE_HOSTS = r"management\.azure\.com|[a-z0-9]+\.api\.azureml\.ms|cert-[a-z0-9]+\.experiments\.azureml\.net"
SECRET = "TOKEN-NOBODY-MAY-SEE"
AZ = """#!/bin/sh
[ -n "$AZ_LOGGED_OUT" ] && { echo "ERROR: Please run 'az login' to setup account." >&2; exit 1; }
echo '{"accessToken":"%s","expires_on":%d,"tokenType":"Bearer","subscription":"s","tenant":"t"}'
"""


def _token() -> str:
    """What `az` gives: unsigned, with the claims that Azurite looks at."""
    tenant = "11111111-aaaa-bbbb-cccc-000000000000"
    claims = {"upn": "traveller@example.com", "tid": tenant, "iss": f"https://sts.windows.net/{tenant}/",
              "aud": "https://storage.azure.com", "iat": 1, "nbf": 1, "exp": int(time.time()) + 86400}
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), SECRET])


_skipped: list[str] = []


def pytest_terminal_summary(terminalreporter):
    for reason in _skipped:
        terminalreporter.write_line(f"NOT RUN: the tests of Azure, since {reason}", yellow=True, bold=True)


def _skip(reason: str) -> None:
    _skipped.append(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def azurite_program() -> Path:
    """Azurite, installed here if it is not yet."""
    from filelock import FileLock

    if not (shutil.which("node") and shutil.which("npm")):
        _skip("node and npm are not on this machine")
    with FileLock(HERE / ".install.lock"):
        if not AZURITE.is_file():
            done = subprocess.run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"],
                                  cwd=HERE, capture_output=True, text=True, timeout=280)
            if done.returncode or not AZURITE.is_file():
                _skip(f"npm cannot install azurite: {done.stderr.strip()[:200]}")
    return AZURITE


@dataclass
class Servers:
    azure: azure_stub.Azure
    proxy: Proxy
    folder: Path
    storage_port: int
    front_port: int


@pytest.fixture(scope="session")
def servers(azurite_program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("azure")
    make_certificates(folder)
    program = folder / "bin" / "az"
    program.parent.mkdir()
    program.write_text(AZ % (_token(), time.time() + 86400))
    program.chmod(0o755)
    port = _free_port()
    azurite = subprocess.Popen(
        ["node", str(azurite_program), "--blobPort", str(port), "--inMemoryPersistence", "--silent",
         "--disableTelemetry", "--skipApiVersionCheck", "--cert", str(folder / "cert.pem"),
         "--key", str(folder / "key.pem"), "--oauth", "basic"], stdout=subprocess.DEVNULL, cwd=folder)
    try:
        _wait_for(port, azurite)
        stub = azure_stub.Azure()
        proxy = Proxy([(STORAGE_HOST, port), (SERVICE_HOSTS, azure_stub.serve(stub, folder))], counted=STORAGE_HOST)
        yield Servers(stub, proxy, folder, port, serve_front(stub, folder, port))
    finally:
        azurite.send_signal(signal.SIGTERM)
        azurite.wait(10)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "azurite ended"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("azurite does not answer")


class Cloud:
    """One test's Azure."""

    def __init__(self, servers: Servers):
        from azure.storage.blob import ContainerClient

        self.azure, self.proxy = servers.azure, servers.proxy
        self._front_port = servers.front_port
        self.target = ["--workspace-name", WORKSPACE, "--resource-group", GROUP, "--subscription", SUBSCRIPTION]
        self.box = ContainerClient(f"https://127.0.0.1:{servers.storage_port}/{ACCOUNT}", CONTAINER, credential=KEY,
                                   connection_verify=str(servers.folder / "ca.pem"))
        if not self.box.exists():
            self.box.create_container()

    def open_front(self) -> None:
        """From now on requests to the storage meet the faults too; their names begin with "storage"."""
        self.proxy.routes[0] = (STORAGE_HOST, self._front_port)

    def stored(self, name: str, version: str) -> dict[str, bytes]:
        """The files of a registered version, as they lie in the storage."""
        prefix = self.azure.models[name, version]["properties"]["modelUri"].partition("/paths/")[2]
        return {b.name.removeprefix(prefix + "/"): self.box.download_blob(b.name).readall()
                for b in self.box.list_blobs(name_starts_with=prefix + "/")}


@pytest.fixture
def cloud(servers, monkeypatch, tmp_path):
    """An empty Azure, reached by every client of this process and its children through the environment."""
    servers.azure.reset()
    servers.proxy.reset()
    servers.proxy.routes[0] = (STORAGE_HOST, servers.storage_port)
    for name in [n for n in os.environ if n.startswith(("AZURE_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "PATH": f"{servers.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HTTPS_PROXY": servers.proxy.url,
        "HTTP_PROXY": servers.proxy.url, "NO_PROXY": "127.0.0.1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "REQUESTS_CA_BUNDLE": str(servers.folder / "ca.pem"), "PHICLI_AZURE_RETRIES": "0",
        "PHICLI_AZURE_TIMEOUT": "20",
    }.items():
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
