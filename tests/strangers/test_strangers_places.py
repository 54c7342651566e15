"""Places of results, temporary folders, logs, locks and roots where strangers, or the user, have put something else."""

import hashlib
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phicli.artifacts import hashing, stages
from phicli.artifacts.hashing import Memory, file_hashes
from phicli.artifacts.locks import held, holder
from phicli.artifacts.logs import log_file
from phicli.artifacts.publishing import MARKER
from phicli.errors import BadInput, UsageError
from phicli.hub.roots import check_root, remember_model
from phicli.progress import SILENT
from phicli.workflow.plan import Plan

FEW = ("--samples", "8", "--seq-len", "64", "--device", "cpu")
ROWS = '{"prompt": "a", "response": "b"}\n' * 2
needs_posix = pytest.mark.skipif(os.name == "nt", reason="links, FIFOs and modes of POSIX")


def put(kind: str, place: Path, victim: Path) -> None:
    """Something that is not phicli's."""
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder with a file":
        place.mkdir()
        (place / "me.jpg").write_text("mine")
    elif kind == "FIFO":
        os.mkfifo(place)
    elif kind == "dangling link":
        place.symlink_to(victim.with_name("nothing"))
    elif kind == "link to a file":
        place.symlink_to(victim)
    elif kind == "device":  # made by root only; a link to one stands for it elsewhere
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3)) if os.getuid() == 0 else place.symlink_to(os.devnull)


def seen(folder: Path) -> dict[str, object]:
    """All that is in a folder, without logs."""
    return {p.relative_to(folder).as_posix(): (stat.S_IFMT(p.lstat().st_mode), p.lstat().st_ino,
                                               p.read_bytes() if p.is_file() else None)
            for p in folder.rglob("*") if "logs" not in p.parts}


@needs_posix
@pytest.mark.parametrize("kind", ["file", "folder with a file", "FIFO", "device", "dangling link", "link to a file"])
@pytest.mark.parametrize("command", ["quantize", "optimize", "finetune", "evaluate", "save-plan", "fix"])
def test_something_else_at_the_place_of_a_result(cli, tmp_path, tiny_awq, kind, command):
    """A file, a full folder, a FIFO, a device or a link at the place of a result: exit code 3, untouched."""
    root, rows, victim = tmp_path / "root", tmp_path / "rows.jsonl", tmp_path / "victim"
    root.mkdir()
    rows.write_text(ROWS)
    victim.write_text("precious")
    place = {"finetune": root / "ft" / "travel", "evaluate": root / "evaluation.json"}.get(command, root / "place")
    place.parent.mkdir(exist_ok=True)
    if command == "evaluate":
        (root / "awq").symlink_to(tiny_awq)
        if kind == "file":
            place.write_text('{"mine": 1}')
    if not os.path.lexists(place):
        put(kind, place, victim)
    before = seen(tmp_path)
    common = ("--model", "tiny", "--root", root)
    done = cli(*{
        "quantize": ("quantize", *common, "--output", place, *FEW),
        "optimize": ("optimize", "--root", root, "--base", tiny_awq, "--output", place, "--device", "cpu"),
        "finetune": ("finetune", *common, "--base", tiny_awq, "--data", rows, "--device", "cpu"),
        "evaluate": ("evaluate", *common, "--eval-data", rows, "--device", "cpu"),
        "save-plan": ("quantize", *common, "--save-plan", place, *FEW),
        "fix": ("inspect", rows, "--model", "tiny", "--fix", place),
    }[command])
    assert done.code == 3 and str(place) in done.err and done.out == "", done
    assert seen(tmp_path) == before


@needs_posix
def test_a_stage_that_is_a_link_to_another_disk(tmp_path):
    """A stage that is a link to a folder elsewhere: the result is made there, and the link stays."""
    big, link = tmp_path / "big" / "stage", tmp_path / "root" / "awq"
    big.mkdir(parents=True)
    link.parent.mkdir()
    link.symlink_to(big)
    for text in ("one", "two"):
        with Plan("quantize", link, {}, {"text": text}).publishing() as (fresh, _):
            assert fresh.is_relative_to(big.parent)
            (fresh / "w").write_text(text)
    assert link.is_symlink() and (big / "w").read_text() == "two"
    assert list(big.parent.iterdir()) == [big] and list(link.parent.iterdir()) == [link]
    assert not Plan("quantize", link, {}, {"text": "three"}).finished(False, SILENT)


def test_folders_of_the_user_with_the_names_of_temporary_ones(tmp_path):
    """Folders of the user's named like temporary ones (`.mine.old`, `.mine.new-1`): they stay, with all in them."""
    target = tmp_path / "mine"
    names = [".mine.old", ".mine.new-1", f".mine.new-{'0' * 16}", ".mine.new-999999999"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "letter").write_text("dear")
    stages.settle(target, alone=True)
    with Plan("quantize", target, {}, {}).publishing() as (fresh, _):
        (fresh / "w").write_text("x")
    assert Plan("quantize", target, {}, {}).finished(False, SILENT)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "mine"])
    assert all((tmp_path / name / "letter").read_text() == "dear" for name in names)


def test_only_the_dead_of_this_machine_are_cleared_away(tmp_path):
    """Temporary folders of a killed process, and of one on another machine: the first goes, the second stays."""
    code = "import sys, os, signal; from pathlib import Path; from phicli.artifacts.stages import publishing\n" \
           "with publishing(Path(sys.argv[1])) as f: (f / 'w').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "awq")])
    assert killed.returncode == -signal.SIGKILL
    (dead,) = tmp_path.iterdir()
    far = tmp_path / f".awq.new-{'a' * 16}"
    far.mkdir()
    (far / MARKER).write_text(json.dumps({**json.loads((dead / MARKER).read_text()), "host": "elsewhere"}))
    stages.settle(tmp_path / "awq")
    assert list(tmp_path.iterdir()) == [far]


@needs_posix
@pytest.mark.parametrize("kind", ["link", "hard link", "link of the folder", "FIFO"])
def test_a_planted_log(tmp_path, kind):
    """A log that was planted as a link, a hard link or a FIFO: nothing is written through it, the command goes on."""
    root, victim = tmp_path / "root", tmp_path / "victims" / "phicli-run.log"
    root.mkdir()
    victim.parent.mkdir()
    victim.write_text("precious")
    if kind == "link of the folder":
        (root / "logs").symlink_to(victim.parent)
    else:
        (root / "logs").mkdir()
        place = root / "logs" / "phicli-run.log"
        {"link": lambda: place.symlink_to(victim), "hard link": lambda: os.link(victim, place),
         "FIFO": lambda: os.mkfifo(place)}[kind]()
    with log_file("run", root) as (path, log):
        log.write("chatter")
    assert path.read_text() == "chatter" and victim.read_text() == "precious"
    if not path.is_relative_to(root):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@needs_posix
def test_a_planted_log_in_the_temporary_folder(tmp_path, monkeypatch):
    """A log's name in /tmp that could be computed: logs lie in a new folder that is closed to others."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"phicli-run-{os.getpid()}.log").symlink_to(victim)
    with log_file("run", tmp_path / "no root") as (path, log):
        log.write("chatter")
    assert victim.read_text() == "precious" and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@needs_posix
@pytest.mark.parametrize("kind", ["dangling link", "link to a file", "FIFO", "folder with a file"])
def test_a_planted_lock(tmp_path, kind):
    """A lock that was planted as a link, a FIFO or a folder: exit code 3, nothing is made or written through it."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    put(kind, tmp_path / ".awq.lock", victim)
    before = seen(tmp_path)
    with pytest.raises(BadInput, match="no lock of phicli's"), held(tmp_path / "awq", SILENT):
        raise AssertionError("went on without the lock")
    assert holder(tmp_path / "awq") is None and seen(tmp_path) == before


@needs_posix
def test_a_lock_with_a_second_name(tmp_path):
    """A lock that is another name of somebody's file: the file keeps its content."""
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", tmp_path / ".awq.lock")
    with held(tmp_path / "awq", SILENT) as got:
        assert got
    assert (tmp_path / "victim").read_text() == "precious"


@needs_posix
@pytest.mark.parametrize("kind", ["file", "folder with a file", "FIFO", "dangling link", "link to a file",
                                  "link to a folder"])
def test_a_planted_checkpoint(tmp_path, kind):
    """Something else where finetune keeps its checkpoint: exit code 3, untouched."""
    from phicli.training.checkpoint import Checkpoint

    place, victim = tmp_path / ".travel.checkpoint", tmp_path / "victim"
    victim.write_text("precious")
    put(kind, place, victim)
    if kind == "link to a folder":
        (tmp_path / "folder").mkdir()
        place.symlink_to(tmp_path / "folder")
    before = seen(tmp_path)
    with pytest.raises(BadInput):
        Checkpoint(place, {})
    assert seen(tmp_path) == before


@needs_posix
def test_a_history_where_others_can_write(tmp_path, monkeypatch):
    """chat's history planted as a link in a shared XDG_STATE_HOME: nothing is written through it."""
    from phicli.cli.line_editor import _history

    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "phicli").mkdir(parents=True)
    (tmp_path / "state" / "phicli" / "chat_history").symlink_to(victim)
    (tmp_path / "state").chmod(0o777)
    _history().append_string("Where to?")
    assert victim.read_text() == "precious\n"


@needs_posix
def test_a_memory_of_hashes_that_others_can_write_to(tmp_path, monkeypatch):
    """A memory of hashes that another user could have written: not believed, every file is read."""
    monkeypatch.setattr(hashing, "SETTLED", -(10**12))
    monkeypatch.setattr(hashing, "_in_memory", set)
    path, kept = tmp_path / "weights", tmp_path / "cache" / "hashes"
    path.write_bytes(bytes(2 << 20))
    monkeypatch.setattr(hashing, "MEMORY", Memory(kept))
    right = file_hashes([path])
    text = kept.read_bytes().partition(b"\n")[2]
    lie = text.replace(right[0].encode(), b"0" * 64)
    kept.write_bytes(hashlib.sha256(lie).hexdigest().encode() + b"\n" + lie)
    monkeypatch.setattr(hashing, "MEMORY", Memory(kept))
    assert file_hashes([path]) == ["0" * 64]  # this user's own
    kept.parent.chmod(0o777)
    monkeypatch.setattr(hashing, "MEMORY", Memory(kept))
    assert file_hashes([path]) == right


@needs_posix
def test_results_have_the_usual_modes(cli, tmp_path):
    """Result files under umask 022 and 077: modes 0644 and 0600, as those of any new file."""
    before = os.umask(0o022)
    try:
        done = cli("quantize", "--model", "tiny", "--root", tmp_path, "--save-plan", tmp_path / "plan", *FEW)
        assert done.code == 0, done.err
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in files} == {p.name: "0o644" for p in files}
        assert stat.S_IMODE((tmp_path / "awq").stat().st_mode) == 0o755
        os.umask(0o077)
        stages.write_text(tmp_path / "closed", "x")
        assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_two_models_of_one_short_name(cli, tmp_path, monkeypatch, tiny):
    """Two models of the same short name (a/m, b/m): the second is refused the first one's root, and told of another."""
    monkeypatch.chdir(tmp_path)
    for owner in "ab":
        (tmp_path / owner).mkdir()
        (tmp_path / owner / "m").symlink_to(tiny)
    (tmp_path / "b" / "m").unlink()
    subprocess.run(["cp", "-r", tiny, tmp_path / "b" / "m"], check=True)
    assert cli("quantize", "--model", "a/m", *FEW).code == 0
    before = seen(tmp_path / "models")
    for command in (("quantize", *FEW), ("finetune",), ("status",), ("run",)):
        done = cli(*command, "--model", "b/m")
        assert done.code == 2 and "--root models/b-m" in done.err, done
    assert seen(tmp_path / "models") == before
    assert cli("status", "--model", "a/m").code == 0


def test_a_root_knows_its_model_by_any_name(tmp_path, monkeypatch):
    """A root and its model moved together, another version of a registry's model: still the same model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "m").mkdir(parents=True)
    remember_model(tmp_path / "x" / "root", str(tmp_path / "x" / "m"))
    (tmp_path / "x").rename(tmp_path / "y")
    check_root(tmp_path / "y" / "root", "y/m")
    for first, again, other in (
            ("azureml://registries/r/models/m/versions/4", "azureml://registries/r/models/m/versions/5",
             "azureml://registries/s/models/m/versions/4"),
            ("azureml:m:4", "azureml:m@latest", "azureml:n:4"), ("a/m", "A/M", "b/m")):
        root = tmp_path / first.replace("/", "-")
        remember_model(root, first)
        check_root(root, again)
        with pytest.raises(UsageError, match="another model"):
            check_root(root, other)


@pytest.mark.parametrize("given", [("--model", "."), ("--model", "models/mine"), ("--model", "models/mine", "--root",
                                   "models/mine/lab"), ("--model", "models/mine", "--output", "models/mine/.out")])
def test_a_result_inside_its_own_model(cli, tmp_path, monkeypatch, tiny, given):
    """A root or output inside the model's own folder: refused before any work, exit code 3, with another root."""
    model = tmp_path / "models" / "mine"
    model.parent.mkdir()
    subprocess.run(["cp", "-r", tiny, model], check=True)
    monkeypatch.chdir(model if given[1] == "." else tmp_path)
    before = seen(tmp_path)
    done = cli("quantize", *given, *FEW)
    assert done.code == 3 and f"--root {model}-lab" in done.err, done
    assert seen(tmp_path) == before and not (model / "logs").exists()


def test_a_calibration_file_inside_the_place_of_the_result(cli, tmp_path):
    """A file that a step reads, inside the folder that its result would replace: exit code 3, untouched."""
    with Plan("quantize", tmp_path / "awq", {}, {}).publishing() as (fresh, _):
        (fresh / "text.txt").write_text("some words\n" * 1000)
    done = cli("quantize", "--model", "tiny", "--root", tmp_path, "--calibration", tmp_path / "awq" / "text.txt", *FEW)
    assert done.code == 3 and "would replace" in done.err and (tmp_path / "awq" / "text.txt").is_file()


@pytest.mark.parametrize("where", ["phicli.toml", "environment", "flag"])
def test_a_tilde_in_a_path(cli, tmp_path, monkeypatch, where):
    """A path that begins with ~ in phicli.toml, the environment or --root=~/x: the home folder, no folder `~`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rows.jsonl").write_text(ROWS)
    flags = []
    if where == "phicli.toml":
        Path("phicli.toml").write_text('root = "~/lab"\ndata = "~/rows.jsonl"\n')
    elif where == "environment":
        monkeypatch.setenv("PHICLI_ROOT", "~/lab")
        monkeypatch.setenv("PHICLI_DATA", "~/rows.jsonl")
    else:
        flags = ["--root=~/lab", "--data=~/rows.jsonl"]
    done = cli("status", "--model", "tiny", "--json", *flags)
    places = {link["step"]: (link["state"], link["place"]) for link in json.loads(done.out)}
    assert places["data"] == ("up to date", str(tmp_path / "home" / "rows.jsonl"))
    assert places["quantize"][1] == str(tmp_path / "home" / "lab" / "awq")
    done = cli("inspect", "~/rows.jsonl", "--model", "tiny", "--fix", "~/clean.jsonl")
    assert done.code == 0 and (tmp_path / "home" / "clean.jsonl").is_file() and not Path("~").exists()


def test_a_misspelt_variable(cli, monkeypatch):
    """A misspelt PHICLI_… variable: exit code 3 and the name that was meant."""
    monkeypatch.setenv("PHICLI_QUANTIZE_SAMPELS", "3")
    done = cli("config")
    assert done.code == 3 and "PHICLI_QUANTIZE_SAMPELS" in done.err and "PHICLI_QUANTIZE_SAMPLES" in done.err


@pytest.mark.parametrize("arguments", [
    ("finetune", "--name", "a", "--name", "b"), ("finetune", "-n", "a", "--name=b"),
    ("run", "--prompt", "a", "-p", "b"),
    ("quantize", "--symmetric", "--asymmetric"), ("--config", "a", "--config", "b", "config"),
    ("azure", "use", "--subscription", "a", "--subscription", "b")])
def test_an_option_given_twice(cli, arguments):
    """An option with one value given twice: exit code 2."""
    done = cli(*arguments)
    assert done.code == 2 and "given twice" in done.err


def test_a_page_written_through_a_memory_map(tmp_path, monkeypatch):
    """A page written through a memory map when its write no longer changes the times: it is read again."""
    monkeypatch.setattr(hashing, "MEMORY", Memory(tmp_path / "cache" / "hashes"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] = 1  # the page is written to, and the times are of now
        time.sleep(hashing.SETTLED / 1e9 + 0.2)
        first = file_hashes([path])
        memory[1] = 1
        assert file_hashes([path]) != first
