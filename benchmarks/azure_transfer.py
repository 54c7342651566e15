"""phicli upload and download at size, against the tests' Azure (Azurite on this machine): seconds, memory, bytes.

    python benchmarks/azure_transfer.py [--megabytes 300] [--big 2000]

Every run is the real command line in a process of its own. The storage is a single Node process on the same cores,
so the times say what the client and that process need together, not what a line to Azure gives.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "azure"))

from azure_servers import Cloud, install_azurite, running


def phicli(*argv: object, environment: dict[str, str], folder: Path, interrupt=None) -> tuple[int, float, float, str]:
    """(exit code, seconds, peak memory in MB, stdout); with `interrupt`, seconds from Ctrl-C to the end."""
    begun = time.monotonic()
    with (folder / "out.txt").open("w+") as out:
        process = subprocess.Popen([sys.executable, "-m", "phicli", *map(str, argv)], env=environment, cwd=folder,
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL)
        if interrupt:
            while not interrupt():
                time.sleep(0.02)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        return os.waitstatus_to_exitcode(status), time.monotonic() - begun, usage.ru_maxrss / 1000, out.read().strip()


def make_model(folder: Path, megabytes: int) -> Path:
    """A folder like an optimized model: one big file, some small ones; no two blocks alike."""
    (folder / "adapters").mkdir(parents=True)
    with (folder / "model.onnx.data").open("wb") as f:
        for _ in range(megabytes):
            f.write(os.urandom(1_000_000))
    (folder / "model.onnx").write_bytes(os.urandom(700_000))
    (folder / "adapters" / "travel.onnx_adapter").write_bytes(os.urandom(300_000))
    (folder / "genai_config.json").write_text("{}")
    return folder


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as f:
            digest = hashlib.sha256()
            while block := f.read(1 << 20):
                digest.update(block)
        found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--big", type=int, default=2000)
    sizes = parser.parse_args()
    reason = install_azurite()
    if reason:
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for part in ("servers", "bytes"):
            (work / part).mkdir()
        with running(work / "servers", keep=f"--location {work / 'bytes'}") as servers:
            cloud = Cloud(servers)
            environment = {**os.environ, **servers.environment(), "XDG_CACHE_HOME": str(work / "cache")}
            measure(cloud, work, environment, sizes.megabytes)
            measure(cloud, work, environment, sizes.big, rounds=False)
            assert servers.proxy.refused == [], servers.proxy.refused


def measure(cloud: Cloud, work: Path, environment: dict[str, str], megabytes: int, rounds: bool = True) -> None:
    model = make_model(work / f"model-{megabytes}", megabytes)
    size = sum(p.stat().st_size for p in model.rglob("*") if p.is_file())
    common = {"environment": environment, "folder": work}
    upload = ["upload", "--path", model, "--name", f"m{megabytes}", *cloud.target]

    code, seconds, memory, _ = phicli(*upload, **common)
    report(f"upload {megabytes} MB", code, f"{seconds:.1f} s", f"peak {memory:.0f} MB",
           f"sent {cloud.proxy.sent / size:.3f} of it")
    code, seconds, _, _ = phicli(*upload, **common)
    report("the same again: already there", code, f"{seconds:.1f} s")
    cloud.proxy.reset()
    code, seconds, memory, folder = phicli("download", f"azureml:m{megabytes}:1", *cloud.target, **common)
    report(f"download {megabytes} MB", code, f"{seconds:.1f} s", f"peak {memory:.0f} MB",
           "byte-identical" if digests(Path(folder)) == digests(model) else "DIFFERENT")
    if rounds:
        interrupted(cloud, model, common, size)


def interrupted(cloud: Cloud, model: Path, common: dict, size: int) -> None:
    fail_fast = {**common, "environment": {**common["environment"], "PHICLI_AZURE_RETRIES": "0"}}
    (model / "genai_config.json").write_text('{"other": 1}')
    with (model / "model.onnx.data").open("r+b") as f:
        f.write(b"other content from the first byte on")
    upload = ["upload", "--path", model, "--name", "cut", *cloud.target]
    sent, codes = 0, []
    for share in (0.4, 0.8):
        cloud.proxy.reset()
        cloud.proxy.cut_after = int(share * size) - sent
        codes.append(phicli(*upload, **fail_fast)[0])
        sent += cloud.proxy.sent
    cloud.proxy.reset()
    codes.append(phicli(*upload, **common)[0])
    sent += cloud.proxy.sent
    report("upload cut at 40 % and at 80 %, resumed", codes, f"sent {sent / size:.3f} of it")
    cloud.proxy.reset()
    upload[4] = "interrupted"
    code, seconds, _, _ = phicli(*upload, **common, interrupt=lambda: cloud.proxy.sent > size // 5)
    report("Ctrl-C in an upload", code, f"ends after {seconds:.2f} s")


def report(what: str, code: object, *figures: str) -> None:
    print(f"{what:42} exit {code!s:10} {'   '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
