"""Starting what the tests' Azure is made of: certificates, a stand-in for `az`, Azurite, the stub, the proxy."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from azure_certificates import make_certificates
from azure_front import serve_front
from azure_proxy import Proxy
from azure_stub import ACCOUNT, CONTAINER, GROUP, KEY, SUBSCRIPTION, WORKSPACE, Azure, serve

HERE = Path(__file__).parent
AZURITE = HERE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
STORAGE_HOST = r"[a-z0-9]+\.blob\.core\.windows\.net"
SERVICE_HOSTS = (r"[a-z]+\.westeurope\.inference\.ml\.azure\.com|management\.azure\.com|[a-z0-9]+\.api\.azureml\.ms|"
                 r"cert-[a-z0-9]+\.experiments\.azureml\.net")
TARGET = ["--workspace-name", WORKSPACE, "--resource-group", GROUP, "--subscription", SUBSCRIPTION]
SECRET = "TOKEN-NOBODY-MAY-SEE"  # in the token of the one who is signed in
AZ = """#!/bin/sh
[ -n "$AZ_LOGGED_OUT" ] && { echo "ERROR: Please run 'az login' to setup account." >&2; exit 1; }
echo '{"accessToken":"%s","expires_on":%d,"tokenType":"Bearer","subscription":"s","tenant":"t"}'
"""


def install_azurite() -> str | None:
    """Install Azurite beside the tests if it is not there yet; returns why that cannot be, else None."""
    from filelock import FileLock

    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not on this machine"
    with FileLock(HERE / ".install.lock"):
        if not AZURITE.is_file():
            done = subprocess.run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"],
                                  cwd=HERE, capture_output=True, text=True, timeout=280)
            if done.returncode or not AZURITE.is_file():
                return f"npm cannot install azurite: {done.stderr.strip()[:200]}"
    return None


@dataclass
class Servers:
    """front_port: the storage behind a door that can answer with faults."""

    azure: Azure
    proxy: Proxy
    folder: Path
    storage_port: int
    front_port: int

    def environment(self) -> dict[str, str]:
        """What leads every client of a process to these servers."""
        return {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HTTPS_PROXY": self.proxy.url,
                "HTTP_PROXY": self.proxy.url, "NO_PROXY": "127.0.0.1",
                "REQUESTS_CA_BUNDLE": str(self.folder / "ca.pem")}


def prepare(folder: Path) -> None:
    """Put the certificates and an `az` that is signed in into a folder."""
    make_certificates(folder)
    program = folder / "bin" / "az"
    program.parent.mkdir()
    program.write_text(AZ % (_token(), time.time() + 86400))
    program.chmod(0o755)


@contextlib.contextmanager
def running(folder: Path, keep: str = "--inMemoryPersistence") -> Iterator[Servers]:
    """The servers, as long as the block lasts; `keep`: where Azurite has its bytes."""
    prepare(folder)
    port = _free_port()
    azurite = subprocess.Popen(
        ["node", str(AZURITE), "--blobPort", str(port), *keep.split(), "--silent", "--disableTelemetry",
         "--skipApiVersionCheck", "--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem"),
         "--oauth", "basic"], stdout=subprocess.DEVNULL, cwd=folder)
    try:
        _wait_for(port, azurite)
        stub = Azure()
        proxy = Proxy([(STORAGE_HOST, port), (SERVICE_HOSTS, serve(stub, folder))], counted=STORAGE_HOST)
        yield Servers(stub, proxy, folder, port, serve_front(stub, folder, port))
    finally:
        azurite.kill()  # asked to end, it waits for open connections
        azurite.wait()


def _token() -> str:
    """What `az` gives: unsigned, with the claims that Azurite looks at."""
    tenant = "11111111-aaaa-bbbb-cccc-000000000000"
    claims = {"upn": "traveller@example.com", "tid": tenant, "iss": f"https://sts.windows.net/{tenant}/",
              "aud": "https://storage.azure.com", "iat": 1, "nbf": 1, "exp": int(time.time()) + 86400}
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), SECRET])


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
    """The servers as a test sees them, emptied."""

    target = TARGET

    def __init__(self, servers: Servers):
        from azure.storage.blob import ContainerClient

        self.azure, self.proxy = servers.azure, servers.proxy
        self._front_port = servers.front_port
        self.azure.reset()
        self.proxy.reset()
        self.proxy.routes[0] = (STORAGE_HOST, servers.storage_port)
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
