"""What Azure ML does with a command job, on this machine: its input mounted, its command run, its output kept."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from azure_files import every_content

OFTEN = """import sys; from pathlib import Path; from phicli.azure import on_compute as job
job.EVERY_COPY = 0.2; sys.exit(job.main(*map(Path, sys.argv[1:])))"""  # a root is copied every 30 s elsewhere


class Worker:
    """Runs the jobs of the stub. until: the next machine is taken away as soon as its output has a file so named.

    metrics: where a job's machine has its MLflow.
    """

    def __init__(self, cloud, folder: Path):
        self.cloud, self.folder = cloud, folder
        self.metrics = f"sqlite:///{folder / 'mlflow.db'}"
        self.until: str | None = None
        self.processes: list[subprocess.Popen] = []
        self.gate = threading.Event()
        self.gate.set()
        cloud.azure.work = self.work

    def work(self, job: dict) -> None:
        properties = job["properties"]
        self.gate.wait(60)
        properties["status"] = "Running"
        here = self.folder / job["name"]
        places = {}
        for kind, name in (("inputs", "job"), ("outputs", "out")):
            prefix = properties[kind][name]["uri"].partition("/paths/")[2]
            places[name] = (prefix, here / name)
            (here / name).mkdir(parents=True)
            for blob in self.cloud.box.list_blobs(name_starts_with=prefix + "/"):
                path = here / name / blob.name.removeprefix(prefix + "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.cloud.box.download_blob(blob.name).readall())
        command = (properties["command"].replace("${{inputs.job}}", str(here / "job"))
                   .replace("${{outputs.out}}", str(here / "out")).replace("python -m", f"{sys.executable} -m")
                   .replace("-m phicli.azure.on_compute", f"-c '{OFTEN}'"))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PHICLI_") and k != "PYTHONPATH"}
        process = subprocess.Popen(command, shell=True, env={**clean, "MLFLOW_TRACKING_URI": self.metrics}, cwd=here,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.processes.append(process)
        sent: dict[str, bytes] = {}
        while True:
            ended, lost = process.poll() is not None, False
            for name, data in every_content(here / "out").items():
                if sent.get(name) != data:
                    self.cloud.box.upload_blob(f"{places['out'][0]}/{name}", data, overwrite=True)
                    sent[name] = data
                lost = lost or bool(self.until and self.until in name)
            if lost:
                self.until = None
                os.killpg(process.pid, 9)
                properties["status"] = "Failed"
                return
            if ended:
                break
            time.sleep(0.3)
        properties["status"] = "Completed" if process.returncode == 0 else "Failed"

    def end(self) -> None:
        self.cloud.azure.work = None
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.wait()
