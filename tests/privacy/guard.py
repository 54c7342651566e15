"""Running a command while three guards write down every attempt to reach the network.

python: an audit hook in every Python process, through a `sitecustomize` on PYTHONPATH. It sees what Python's own socket
    module is asked (connect, names to look up, datagrams), whatever library asks; not what native code does by itself.
    It also notes opened files whose names are those of pickled weights, but for phicli's own fingerprints of folders.
system: strace on all processes and threads. It sees each system call that could send something, of native code too.
kernel: counters of a network namespace in which every address leads to the loopback device: connections begun and
    datagrams sent, by whatever way; not to whom.

The last two need rights that not every machine gives; then they are None.
"""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HOOK = r'''
import os, sys

def note(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if getattr(args[0], "family", 0) == 1:  # a socket of this machine (AF_UNIX)
            return
        write("network", event, args[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        write("network", event, args[0])
    elif event == "open" and str(args[0]).endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) and not hashing():
        write("pickle", event, args[0])

def hashing():
    """Whether a fingerprint is being taken, for which the bytes of all files of a folder are read."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith(("phicli/artifacts/hashing.py", "phicli/artifacts/stages.py")):
            return True
        frame = frame.f_back
    return False

def write(kind, event, what):
    line = f"{kind} {os.getpid()} {event} {what!r}\n".encode("utf-8", "replace")
    file = os.open(os.environ["GUARD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line)
    os.close(file)

sys.addaudithook(note)
with open(os.environ["GUARD_LOG"] + ".guarded", "a") as file:
    file.write(f"{os.getpid()}\n")
'''
EVERYWHERE = ("ip link set lo up && ip route add local 0.0.0.0/0 dev lo && ip -6 route add local ::/0 dev lo; "
              "echo nameserver 192.0.2.1 > {resolver} && mount --bind {resolver} /etc/resolv.conf")
CALLS = "connect,sendto,sendmsg,sendmmsg"


@dataclass
class Attempts:
    """code, out, err: of the command. processes: guarded Python processes. The rest: see above."""

    code: int
    out: str
    err: str
    processes: int
    python: list[str]
    pickles: list[str]
    system: list[str] | None
    kernel: dict[str, int] | None

    @property
    def network(self) -> list[str]:
        """All that the guards saw, in words."""
        counted = [f"{count} {what}" for what, count in (self.kernel or {}).items() if count]
        return [*self.python, *(self.system or []), *counted]


def guarded(command: list[str], folder: Path, environment: dict[str, str], seconds: float = 280) -> Attempts:
    """Run a command with all the guards that this machine allows. folder: for their files."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    log, trace, before, after = (folder / name for name in ("log", "trace", "before", "after"))
    line = shlex.join(command)
    traced = bool(shutil.which("strace")) and _runs(["strace", "-qq", "-o", str(trace), "true"])
    if traced:
        line = f"strace -f -qq --seccomp-bpf -e trace={CALLS} -o {shlex.quote(str(trace))} {line}"
    setup = EVERYWHERE.format(resolver=shlex.quote(str(folder / "resolv.conf")))
    confined = bool(shutil.which("unshare")) and _runs(["unshare", "-n", "-m", "sh", "-c", setup])
    script = line
    if confined:
        counters = "cat /proc/net/snmp /proc/net/snmp6 >"
        script = (f"{setup}; {counters} {shlex.quote(str(before))}; {line}; code=$?; "
                  f"{counters} {shlex.quote(str(after))}; exit $code")
    paths = [str(folder), *filter(None, [environment.get("PYTHONPATH")])]
    environment = {**environment, "GUARD_LOG": str(log), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([*(["unshare", "-n", "-m"] if confined else []), "sh", "-c", script], env=environment,
                          capture_output=True, text=True, timeout=seconds)
    lines = log.read_text().splitlines() if log.is_file() else []
    begun = Path(f"{log}.guarded")
    kernel = None
    if confined:
        first, last = _counted(before), _counted(after)
        kernel = {what: last[what] - first[what] for what in first}
    return Attempts(
        done.returncode, done.stdout, done.stderr, len(begun.read_text().split()) if begun.is_file() else 0,
        [text for text in lines if text.startswith("network")], [text for text in lines if text.startswith("pickle")],
        re.findall(r"^.*AF_INET6?\b.*$", trace.read_text(errors="replace"), re.M) if traced else None, kernel)


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _counted(path: Path) -> dict[str, int]:
    """The counters of /proc/net/snmp (names in one line, numbers in the next) and snmp6 (name and number)."""
    text = path.read_text()
    found = dict(re.findall(r"^(Udp6OutDatagrams)\s+(\d+)", text, re.M))
    for name, line, numbers in re.findall(r"^(\w+): ([A-Z].*)\n\1: ([-\d].*)$", text, re.M):
        found.update({f"{name} {k}": v for k, v in zip(line.split(), numbers.split(), strict=True)})
    return {"connections begun": int(found["Tcp ActiveOpens"]),
            "datagrams sent": int(found["Udp OutDatagrams"]) + int(found.get("Udp6OutDatagrams", 0))}
