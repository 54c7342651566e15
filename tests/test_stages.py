import os

import pytest

from phicli import stages
from phicli.errors import BadInput, Missing
from phicli.stages import Manifest


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
    target = tmp_path / "awq"
    (tmp_path / ".awq.old").mkdir()
    (tmp_path / ".awq.old" / "w").write_text("kept")
    (tmp_path / ".awq.new-999999999").mkdir()
    (tmp_path / f".awq.new-{os.getpid()}").mkdir()  # of a living process: left alone
    stages.settle(target)
    assert (target / "w").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".awq.new-{os.getpid()}", "awq"]


def test_stale_reasons(tmp_path):
    folder = tmp_path / "awq"
    assert stages.why_stale(folder, "quantize", {}, {}) == "not made yet"
    with stages.publishing(folder) as fresh:
        (fresh / "w").write_bytes(b"123")
        stages.write_manifest(fresh, Manifest("quantize", {"model": "f1"}, {"bits": 4}))
    assert stages.why_stale(folder, "quantize", {"model": "f1"}, {"bits": 4}) is None
    assert stages.why_stale(folder, "quantize", {"model": "f2"}, {"bits": 4}) == "changed input model"
    assert stages.why_stale(folder, "quantize", {"model": "f1"}, {"bits": 8}) == "changed setting bits"
    assert stages.why_stale(folder, "finetune", {"model": "f1"}, {"bits": 4}) == "made by something else"
    (folder / "w").write_bytes(b"12")
    assert stages.why_stale(folder, "quantize", {"model": "f1"}, {"bits": 4}) == "damaged file w"
    (folder / "phicli.json").write_text("{")
    assert "damaged manifest" in stages.why_stale(folder, "quantize", {}, {})
    with pytest.raises(BadInput):
        stages.read_manifest(folder)


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
