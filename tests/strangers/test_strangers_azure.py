"""Storages, registries and folders of strangers, met by `phicli download` and `phicli upload`."""

import gzip
import os
import shutil
import signal
import sys
import time
from itertools import count, repeat
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "azure"))
from azure_proxy import Proxy
from azure_servers import SERVICE_HOSTS, STORAGE_HOST, TARGET, Servers, prepare
from azure_stub import Azure, arm_id, serve
from hostile_storage import Storage, serve_storage

REFERENCE = "azureml://registries/azureml/models/Phi/versions/4"
LATEST = REFERENCE.replace("versions/4", "labels/latest")
ADDRESS = "https://devstoreaccount1.blob.core.windows.net/azureml-blobstore/phi/4"
HERE = ("/subscriptions/11111111-2222-3333-4444-555555555555/resourcegroups/travel-group/workspaces/travel-workspace"
        "/datastores/workspaceblobstore/paths/phi/4")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder, storage, azure = tmp_path_factory.mktemp("strangers"), Storage(), Azure()
    prepare(folder)
    port = serve_storage(storage, folder)
    proxy = Proxy([(STORAGE_HOST, port), (SERVICE_HOSTS, serve(azure, folder))], counted=STORAGE_HOST)
    return Servers(azure, proxy, folder, port, port), storage


@pytest.fixture
def azure(servers, monkeypatch, tmp_path):
    servers[0].azure.reset()
    servers[0].azure.registry["azureml", "Phi", "4"] = ADDRESS
    for name in [n for n in os.environ if n.startswith(("AZURE_", "IDENTITY_", "MSI_"))]:
        monkeypatch.delenv(name)
    for name, value in {**servers[0].environment(), "XDG_CACHE_HOME": str(tmp_path / "cache"),
                        "PHICLI_AZURE_RETRIES": "0", "PHICLI_AZURE_TIMEOUT": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return servers[0].azure


@pytest.fixture
def storage(servers, azure):
    servers[1].reset()
    servers[1].files = {"phi/4/config.json": b'{"a": 1}', "phi/4/weights/model.bin": os.urandom(1_000_000)}
    return servers[1]


def right(storage: Storage, folder: Path) -> bool:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return found == {name.removeprefix("phi/4/"): data for name, data in storage.files.items()}


def killed(forks, at: tuple[str, str, str, int], *argv: object) -> None:
    """Run a command in a process that is killed at the n-th call of a function, before it acts."""
    here = Path.cwd()
    child = forks.start(*argv, cwd=here, out=here / "killed", env=dict(os.environ), killed_at=at)
    assert forks.wait(child) == -signal.SIGKILL
    (here / "killed.out").unlink()
    (here / "killed.err").unlink()


@pytest.mark.parametrize(("name", "after"), [
    ("mkdir", 1), ("mkdir", 2), ("open", 2), ("replace", 1), ("replace", 2), ("rename", 1), ("rmdir", 2)])
def test_killed_download(cli, forks, storage, name, after):
    """`phicli download` killed at any step, the last renames too, and its result taken away: the next has all bytes."""
    if name == "rmdir":  # what removes the journal, after the rename
        killed(forks, ("shutil", "", "rmtree", 1), "download", REFERENCE, "--output", "out")
    else:
        killed(forks, ("pathlib", "Path", name, after), "download", REFERENCE, "--output", "out")
    shutil.rmtree("out", ignore_errors=True)
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 0 and right(storage, Path("out")), done.err
    assert sorted(p.name for p in Path.cwd().iterdir() if "out" in p.name) == [".out.download.json", "out"]


@pytest.fixture
def begun(forks, storage):
    """The part of a download of which most ranges came."""
    killed(forks, ("phicli.azure.part", "Part", "add", 4), "download", REFERENCE, "--output", "out")
    return Path(".out.part")


def test_an_interrupted_download_goes_on(cli, storage, begun):
    """A download is killed in the middle: the next fetches the rest only."""
    sent = storage.ranges
    assert cli("download", REFERENCE, "--output", "out").code == 0
    assert right(storage, Path("out")) and storage.ranges - sent == 2


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


HANDS = {
    "removed": Path.unlink, "all zeros": _zeros, "empty": lambda path: path.write_bytes(b""),
    "its folder removed": lambda path: shutil.rmtree(path.parent),
    "one byte changed": lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]),
    "another file of its size": lambda path: (path.unlink(), path.write_bytes(bytes(1_000_000))),
    "all files removed": lambda path: shutil.rmtree(path.parents[1]),
    "a file beside it": lambda path: (path.parent / "custom_ops.so").write_bytes(b"x"),
    "a link to it": lambda path: (path.parent / "other").symlink_to(path),
}


@pytest.mark.parametrize("what", HANDS)
def test_hands_in_the_part(cli, storage, begun, what):
    """Files of an interrupted download are removed, emptied, changed, joined by others: the next has all bytes."""
    HANDS[what](begun / "files" / "weights" / "model.bin")
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 0 and right(storage, Path("out")), done.err


def test_no_way_to_the_victim_through_a_part(cli, storage, begun, tmp_path):
    """A link in the files of an interrupted download leads to a file of the user's: that file stays as it is."""
    (tmp_path / "victim").write_text("mine")
    for name in ("config.json", "weights/model.bin"):
        (begun / "files" / name).unlink()
        (begun / "files" / name).symlink_to(tmp_path / "victim")
    assert cli("download", REFERENCE, "--output", "out").code == 0
    assert right(storage, Path("out")) and (tmp_path / "victim").read_text() == "mine"


def _planted(part: Path, victim: Path) -> None:
    (part / "files").mkdir(parents=True)
    (part / "files" / "config.json").symlink_to(victim)


PLANTS = {
    "a folder with a link in it": _planted,
    "a link to a folder": lambda part, victim: part.symlink_to(victim.parent),
    "a file": lambda part, victim: part.write_text("mine"),
    "a folder of the user's": lambda part, victim: (part.mkdir(), (part / "journal").write_text("dear diary")),
    "a link in the record's place": lambda part, victim: part.with_name(".out.download.json").symlink_to(victim),
    "a FIFO in the record's place": lambda part, victim: os.mkfifo(part.with_name(".out.download.json")),
    "a FIFO as journal": lambda part, victim: (part.mkdir(), os.mkfifo(part / "journal")),
}


@pytest.mark.parametrize("what", PLANTS)
def test_planted_part(cli, storage, tmp_path, what):
    """What `--output out` needs beside it is a link, a FIFO or somebody's folder: exit code 3, nothing changed."""
    (tmp_path / "home").mkdir()
    victim = tmp_path / "home" / "victim"
    victim.write_text("mine")
    PLANTS[what](tmp_path / ".out.part", victim)
    before = sorted(map(str, tmp_path.rglob("*")))
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 3 and "is there and is no " in done.err and victim.read_text() == "mine"
    assert [p for p in sorted(map(str, tmp_path.rglob("*"))) if "cache" not in p] == [
        p for p in before if "cache" not in p]


def _drip():
    for _ in range(10):
        time.sleep(0.3)
        yield b"x"


TWISTS = {
    "longer": lambda s, h, b: (s, {**h, "content-length": str(len(b) + 9)}, [b, b"x" * 9]),
    "shorter": lambda s, h, b: (s, {**h, "content-length": str(len(b) - 9)}, [b[9:]]),
    "shorter than it says": lambda s, h, b: (s, {**h, "content-length": str(len(b) + 9)}, [b]),
    "without an end": lambda s, h, b: (s, {k: v for k, v in h.items() if k != "content-length"}, repeat(b)),
    "another range": lambda s, h, b: (s, {**h, "content-range": "bytes 9-16/1000000"}, [b]),
    "of a file of another size": lambda s, h, b: (s, {**h, "content-range": h["content-range"] + "0"}, [b]),
    "all of the file": lambda s, h, b: (200, {k: v for k, v in h.items() if k != "content-range"}, [b]),
    "another version": lambda s, h, b: (s, {**h, "etag": '"0x2"'}, [b]),
    "packed": lambda s, h, b: (s, {**h, "content-encoding": "gzip", "content-length": str(len(gzip.compress(b)))},
                               [gzip.compress(b)]),
    "sent elsewhere": lambda s, h, b: (302, {"location": "http://127.0.0.1:9/x", "content-length": "0"}, []),
}


@pytest.mark.parametrize("what", TWISTS)
def test_ranges_that_are_not_what_was_asked_for(cli, storage, what):
    """A storage sends more or less than a range, without end, another range or version: exit code 5, nothing kept."""
    storage.twist = TWISTS[what]
    begun = time.monotonic()
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 5 and "Traceback" not in done.err and not Path("out").exists(), done.err
    assert time.monotonic() - begun < 10


def test_slow_storage(cli, storage, monkeypatch):
    """A storage sends a byte now and then: exit code 5 after a bounded time."""
    monkeypatch.setattr("phicli.azure.transport.SLOWEST", 1 << 40)
    monkeypatch.setenv("PHICLI_AZURE_TIMEOUT", "0.5")
    storage.twist = lambda status, headers, body: (status, headers, _drip())
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 5 and "does not end" in done.err, done.err


def test_changed_between_ranges(cli, storage):
    """A file in the storage changes between two ranges: exit code 5, nothing kept."""
    twisted = count()
    storage.twist = lambda s, h, b: (s, {**h, "etag": '"0x2"'} if next(twisted) > 2 else h, [b])
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 5 and "changed in the storage" in done.err and not Path("out").exists()


NAMES = ["../x", "a/../../x", "/x", "a//b", "a\\..\\x", "c:x", "a\nb", "a\x85b", "nul", "a/COM1.txt", "a.", "a ", ".",
         "x" * 300, "/".join("a" * 40), "\u202egnp.exe"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_of_a_storage(cli, storage, name, tmp_path):
    """A storage has files `../x`, `/x`, `c:x`, `nul`, with control characters, too deep: exit code 3, none written."""
    storage.files["phi/4/" + name] = b"evil"
    done = cli("download", REFERENCE, "--output", "deep/out")
    assert done.code == 3 and storage.ranges == 0, done.err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"evil"]


@pytest.mark.parametrize("names", [
    ("A", "a"), ("weights/Model.bin",), ("Ä", "A\u0308"), ("weights",), ("straße", "STRASSE")])
def test_file_names_that_are_one(cli, storage, names):
    """Two names that are one file on other systems, or a file and a folder: exit code 3, none written."""
    storage.files.update({f"phi/4/{name}": b"x" for name in names})
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 3 and storage.ranges == 0 and not Path("out").exists(), done.err


@pytest.mark.parametrize("version", ["../../x", "/tmp/x", "..", "a/b", "", "1\n2", "x" * 300])
def test_versions_of_a_registry(cli, azure, storage, version, tmp_path):
    """A registry's latest version is `../../x`, a path or nothing: exit code 3, nothing written."""
    del azure.registry["azureml", "Phi", "4"]
    azure.registry["azureml", "Phi", version] = ADDRESS
    done = cli("download", LATEST)
    assert done.code == 3 and "cannot be a model's version" in done.err, done.err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("answer", [[], {}, {"properties": None}, {"properties": {"latestVersion": 4, "modelUri": 5}}])
def test_answers_of_a_registry(cli, azure, storage, monkeypatch, answer):
    """A registry's answer is not what it should be: exit code 5, in words."""
    monkeypatch.setattr(azure, "registry_answer", lambda *args: (200, answer))
    for reference in (REFERENCE, LATEST):
        done = cli("download", reference)
        assert done.code == 5 and "an answer without properties." in done.err, done.err


def test_answers_of_a_workspace(cli, azure, storage):
    """A workspace's answer lacks what the SDK takes for granted: exit code 5, in words."""
    azure.models["m", "1"] = {"id": arm_id("models", "m", "versions", "1"), "name": "1", "properties": {}}
    done = cli("download", "azureml:m:1", *TARGET)
    assert done.code == 5 and "not understood" in done.err, done.err


@pytest.mark.parametrize("size", [10**15, 10**18, 10**30])
def test_sizes_without_measure(cli, storage, size):
    """A storage announces a file of up to 10^30 bytes: exit code 4 at once, nothing fetched."""
    storage.sizes["phi/4/weights/model.bin"] = size
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 4 and "not enough disk space" in done.err and storage.ranges == 0, done.err


PAGES = {
    "the same again": lambda marker: (["phi/4/config.json"], "more"),
    "nothing in them": lambda marker: ([], str(int(marker or 0) + 1)),
    "ever more": lambda marker: ([f"phi/4/{marker or 0}-{i}" for i in range(300)], str(int(marker or 0) + 1)),
}


@pytest.mark.parametrize("what", PAGES)
def test_pages_without_end(cli, storage, what, monkeypatch):
    """A list of files in endless pages, repeated, empty or full: exit code 5."""
    monkeypatch.setattr("phicli.azure.paging.MOST", 1000)
    monkeypatch.setattr("phicli.azure.paging.MOST_EMPTY", 10)
    storage.pages = PAGES[what]
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 5 and "a list that does not end" in done.err and storage.lists < 20, done.err


def test_a_list_that_is_too_long(cli, storage):
    """One page of a list with more than 16 MiB: exit code 5, not read to its end."""
    storage.pages = lambda marker: (["phi/4/" + "x" * (17 << 20)], "")
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 5 and "an answer of more than" in done.err, done.err


def test_storage_over_http(cli, azure, storage):
    """A registry gives a signature for http://: exit code 5, nothing is sent there."""
    azure.registry["azureml", "Phi", "4"] = ADDRESS.replace("https", "http")
    done = cli("download", REFERENCE)
    assert done.code == 5 and "not reached over https" in done.err and "sig=" not in done.err, done.err


@pytest.mark.parametrize(("key", "value"), [
    ("endpoint", "example.com"), ("endpoint", "example.com/x.core.windows.net"), ("protocol", "http"),
    ("protocol", "https://example.com/x"), ("accountName", "example.com/")])
def test_a_login_for_strangers(cli, azure, storage, monkeypatch, key, value):
    """A workspace's datastore without a secret is on a host that is not Azure's: exit code 5, the login stays here."""
    from azure_stub import datastore

    def elsewhere(credentials):
        found = datastore(credentials)
        found["properties"][key] = value
        return found

    monkeypatch.setattr("azure_stub.datastore", elsewhere)
    azure.secret = "none"
    properties = {"modelUri": "azureml:/" + HERE, "flavors": {}, "tags": {}, "properties": {}}
    azure.models["m", "1"] = {"id": arm_id("models", "m", "versions", "1"), "name": "1", "properties": properties}
    done = cli("download", "azureml:m:1", *TARGET)
    assert done.code == 5 and "not Azure's" in done.err, done.err


def test_output_with_another_model(cli, azure, storage):
    """`--output` holds the model of the same name of another registry: exit code 3, left as it is."""
    assert cli("download", REFERENCE, "--output", "out").code == 0
    azure.registry["other", "Phi", "4"] = ADDRESS
    done = cli("download", REFERENCE.replace("azureml/", "other/"), "--output", "out")
    assert done.code == 3 and "holds something else" in done.err and right(storage, Path("out")), done.err
    again = cli("download", REFERENCE, "--output", "out")
    assert again.code == 0 and "already there" in again.err


def _same_size(folder: Path) -> None:
    path = folder / "weights" / "model.bin"
    times = path.stat()
    path.write_bytes(bytes(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGE = {
    "other bytes, same size and time": _same_size,
    "a file gone": lambda folder: (folder / "config.json").unlink(),
    "a file more": lambda folder: (folder / "extra.json").write_text("{}"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_model(cli, storage, what):
    """A downloaded model is damaged, sizes unchanged too: exit code 3 in `--output`, fetched again in the cache."""
    assert cli("download", REFERENCE, "--output", "out").code == 0
    DAMAGE[what](Path("out"))
    before = {p: p.stat().st_mtime_ns for p in Path("out").rglob("*")}
    done = cli("download", REFERENCE, "--output", "out")
    assert done.code == 3 and before == {p: p.stat().st_mtime_ns for p in Path("out").rglob("*")}, done.err
    cached = Path(cli("download", REFERENCE).out.strip())
    DAMAGE[what](cached)
    assert cli("download", REFERENCE).code == 0 and right(storage, cached)


@pytest.mark.parametrize("what", ["file", "fifo", "dangling link", "/dev/null", "."])
def test_output_that_is_no_folder(cli, storage, what, tmp_path):
    """`--output` is a file, a FIFO, a link to nothing, a device or the working folder: exit code 3, left as it is."""
    path = tmp_path / "here" / "out" if what != "/dev/null" else Path(what)
    (tmp_path / "here").mkdir()
    if what == "file":
        path.write_text("mine")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "dangling link":
        path.symlink_to("nothing")
    elif what == ".":
        path = Path()
    before = path.lstat()
    done = cli("download", REFERENCE, "--output", path)
    assert done.code == 3 and path.lstat().st_ino == before.st_ino and path.lstat().st_mode == before.st_mode, done.err


def test_output_that_is_a_link(cli, storage, tmp_path):
    """`--output` is a link to an empty folder: the link stays, the model is where it leads."""
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to("big")
    assert cli("download", REFERENCE, "--output", "out").code == 0
    assert (tmp_path / "out").is_symlink() and right(storage, tmp_path / "big")


def test_cache_that_others_can_write(cli, storage, monkeypatch, tmp_path):
    """`azure.cache` is a folder to which everybody can write: exit code 4, nothing taken from it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("PHICLI_AZURE_CACHE", str(tmp_path / "shared"))
    done = cli("download", REFERENCE)
    assert done.code == 4 and "others can write to" in done.err, done.err


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "../", "nothing", "link"])
def test_upload_of_links(cli, tmp_path, target):
    """A folder to upload has a link that leads out of it, nowhere or in a circle: exit code 3, the link is named."""
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "model" / "link").symlink_to(target)
    done = cli("upload", *TARGET, "--path", tmp_path / "model")
    assert done.code == 3 and f"{tmp_path}/model/link" in "".join(done.err.split("\n")), done.err


def test_upload_of_fifos(cli, tmp_path):
    """A folder to upload has a FIFO in it: exit code 3, the FIFO is named."""
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "pipe")
    done = cli("upload", *TARGET, "--path", tmp_path / "model")
    assert done.code == 3 and "not a regular file" in done.err, done.err
