import json
import os
import socket

import pytest

from phicli.artifacts import stages
from phicli.artifacts.stages import Manifest
from phicli.errors import BadInput, Missing
from phicli.progress import SILENT
from phicli.workflow.plan import Plan, State, judge


def test_publish_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "awq"
    with stages.publishing(target) as fresh:
        (fresh / "w").write_text("one")
        assert not target.exists()
    assert (target / "w").read_text() == "one"
    with pytest.raises(KeyboardInterrupt), stages.publishing(target) as fresh:
        (fresh / "w").write_text("two")
        raise KeyboardInterrupt
    assert (target / "w").read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["awq"]


def test_settle_after_a_kill(tmp_path):
    target, here = tmp_path / "awq", socket.gethostname()

    def unfinished(number, pid, host):
        folder = tmp_path / f".awq.new-{number:016x}"
        (folder / "new").mkdir(parents=True)
        (folder / ".phicli-unfinished.json").write_text(json.dumps({"pid": pid, "host": host}))
        return folder

    dead, alive, elsewhere = unfinished(1, 999999999, here), unfinished(2, os.getpid(), here), unfinished(3, 1, "other")
    (dead / "old").mkdir()
    (dead / "old" / "w").write_text("kept")
    stages.settle(target)
    assert (target / "w").read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == [alive, elsewhere, target]
    stages.settle(target, alone=True)
    assert sorted(tmp_path.iterdir()) == [target]


def test_verdicts(tmp_path):
    folder = tmp_path / "awq"

    def verdict(inputs, settings=None, step="quantize"):
        found = judge(folder, step, inputs, {"bits": 4} if settings is None else settings)
        return f"{found.state}: {found.reason}"

    assert verdict({}) == "not made: "
    with stages.publishing(folder) as fresh:
        (fresh / "w").write_bytes(b"123")
        stages.write_manifest(fresh, Manifest("quantize", {"model": "f1"}, {"bits": 4}))
    assert verdict({"model": "f1"}) == "up to date: "
    assert verdict({"model": "f2"}) == "stale: changed input model"
    assert verdict({"model": "f1"}, {"bits": 8}) == "stale: changed setting bits (4, now 8)"
    assert verdict({"model": "f1"}, step="finetune") == "stale: made by something else"
    (folder / "w").write_bytes(b"12")
    assert verdict({"model": "f1"}) == "broken: w is truncated: 2 bytes instead of 3"
    (folder / "w").write_bytes(b"124")
    assert verdict({"model": "f1"}) == "broken: w has other content than the step wrote"
    with pytest.raises(BadInput, match="other content") as caught:
        stages.check_whole(folder)
    assert caught.value.hint == "phicli quantize"
    (folder / "w").unlink()
    assert verdict({"model": "f1"}) == "broken: w is missing"


def test_a_manifest_that_is_damaged_or_old(tmp_path):
    (tmp_path / "w").write_text("x")
    stages.write_manifest(tmp_path, Manifest("quantize", {"model": "f1"}, {"bits": 4}, quality={"kl": 0.25}))
    path = tmp_path / "phicli.json"
    whole = path.read_text()
    assert stages.read_manifest(tmp_path).quality == {"kl": 0.25}
    for broken in ("{", "[]", "[" * 100_000, "\xff", whole.replace("0.25", "0.26"), whole[:-9], '{"step": 1}',
                   '{"step": "quantize", "inputs": [], "settings": {}}',
                   '{"step": "quantize", "inputs": {}, "settings": {}, "files": {"w": "x"}}',
                   '{"step": "quantize", "inputs": {}, "settings": {}, "colour": 1}'):
        path.write_text(broken, encoding="latin-1")
        with pytest.raises(BadInput, match="damaged"):
            stages.read_manifest(tmp_path)
        assert judge(tmp_path, "quantize", {"model": "f1"}, {"bits": 4}).state is State.BROKEN
    old = json.loads(whole)
    del old["check"], old["hashes"]  # as before there were any
    path.write_text(json.dumps(old))
    assert stages.read_manifest(tmp_path).bytes == 1
    assert judge(tmp_path, "quantize", {"model": "f1"}, {"bits": 4}).reason == "made by an older version of phicli"
    stages.check_whole(tmp_path)


def test_a_source_that_changes_meanwhile_keeps_the_result_from_being_published(tmp_path):
    (tmp_path / "rows").write_text("1")
    plan = Plan("finetune", tmp_path / "ft", {"data": tmp_path / "rows"}, {})
    with pytest.raises(BadInput, match="changed while finetune ran"), plan.publishing() as (fresh, _):
        (fresh / "w").write_text("made of 1")
        (tmp_path / "rows").write_text("2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows"]
    with Plan("finetune", tmp_path / "ft", {"data": tmp_path / "rows"}, {}).publishing() as (fresh, manifest):
        (fresh / "w").write_text("made of 2")
        manifest.quality["loss"] = 1.0
    again = Plan("finetune", tmp_path / "ft", {"data": tmp_path / "rows"}, {})
    assert again.verdict().current and again.finished(False, SILENT).quality == {"loss": 1.0}
    assert again.finished(True, SILENT) is None


def test_what_is_no_result_of_the_step_is_never_replaced(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "me.jpg").write_text("x")
    with pytest.raises(BadInput, match="files that no step of phicli made"):
        Plan("quantize", folder, {}, {}).finished(True, SILENT)
    stages.write_manifest(folder, Manifest("finetune", {}, {}))
    with pytest.raises(BadInput, match="the result of phicli finetune"):
        Plan("quantize", folder, {}, {}).finished(True, SILENT)
    assert (folder / "me.jpg").read_text() == "x"


def test_fingerprint_sees_content_and_names_not_manifest(tmp_path):
    (tmp_path / "a").write_text("x")
    first = stages.fingerprint(tmp_path)
    (tmp_path / "phicli.json").write_text("{}")
    assert stages.fingerprint(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert stages.fingerprint(tmp_path) != first


def test_no_space_and_no_folder_are_missing(tmp_path):
    with pytest.raises(Missing, match="No space"), stages.writing(tmp_path):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("")
    with pytest.raises(Missing, match=r"cannot be written"), stages.publishing(tmp_path / "file" / "awq"):
        pass
