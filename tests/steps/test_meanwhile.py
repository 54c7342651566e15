"""What is read of a root while another process publishes there, removes, or begins again."""

import shutil
from pathlib import Path

import pytest

from phicli.artifacts import logs, stages
from phicli.artifacts.publishing import publishing
from phicli.artifacts.reading import check_regular
from phicli.config.layers import Settings
from phicli.deployment import image
from phicli.errors import BadInput
from phicli.progress import SILENT
from phicli.steps import removing
from phicli.steps.inventory import Kept, size_on_disk
from phicli.steps.removing import plan_removal
from phicli.steps.verify import Found, verify
from phicli.workflow.plan import Plan


def publish(folder: Path, name: str) -> None:
    with publishing(folder) as fresh:
        (fresh / name).write_text(name)
        stages.write_manifest(fresh, stages.Manifest("quantize", {}, {}))


@pytest.fixture
def root(tmp_path) -> Path:
    publish(tmp_path / "awq", "old")
    stages.write_sealed(tmp_path / "evaluation.json", {"stages": []})
    return tmp_path


@pytest.fixture
def once(monkeypatch):
    """Let something happen before, or after, the next call of a function."""
    def plan(owner, name, act, after=False):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            monkeypatch.setattr(owner, name, real)
            if not after:
                act()
            found = real(*args, **kwargs)
            if after:
                act()
            return found

        monkeypatch.setattr(owner, name, call)
    return plan


def test_results_that_go_are_not_listed(root, once):
    once(stages, "read_manifest", lambda: shutil.rmtree(root / "awq"))
    assert [one.step for one in Kept("", root, None).made] == ["evaluate"]
    once(stages, "read_sealed", (root / "evaluation.json").unlink)
    assert Kept("", root, None).made == []
    stages.write_sealed(root / "evaluation.json", {"stages": []})
    once(stages, "read_sealed", (root / "evaluation.json").unlink, after=True)
    assert [(one.step, one.bytes) for one in Kept("", root, None).made] == [("evaluate", 0)]
    assert size_on_disk(root / "awq") == 0


def test_a_result_that_is_replaced_is_verified_as_the_new_one(root, once):
    once(stages, "read_exactly", lambda: publish(root / "awq", "new"), after=True)
    assert {one.state for one in verify(root)} == {Found.WHOLE}


def test_a_result_that_goes_while_it_is_verified_is_told(root, once):
    once(stages, "read_exactly", lambda: shutil.rmtree(root / "awq"))
    told = {Path(one.place).name: one.wrong for one in verify(root)}
    assert told == {"awq": ["it was removed while this looked"], "evaluation.json": []}


def test_what_a_step_publishes_is_nothing_foreign(root, once):
    """Neither to rm nor to a second process of the step."""
    once(stages, "foreign_file", lambda: publish(root / "awq", "new"))
    assert root / "awq" in plan_removal(Settings(), str(root)).places
    once(stages, "foreign_file", lambda: publish(root / "awq", "newer"))
    Plan("quantize", root / "awq", {}, {}).check_theirs()


def test_a_step_that_fails_because_its_source_went_says_so(root):
    """And not what a library made of it; where the sources are what they were, the error is its own."""
    def run(meanwhile) -> None:
        with Plan("optimize", root / "onnx-ao", {"base": root / "awq"}, {}).locked(False, SILENT):
            meanwhile()
            raise RuntimeError("unable to open file")

    with pytest.raises(RuntimeError, match="unable to open"):
        run(lambda: None)
    with pytest.raises(BadInput, match="awq: changed while optimize ran"):
        run(lambda: publish(root / "awq", "new"))
    with pytest.raises(BadInput, match="awq: cannot be read"):
        run(lambda: shutil.rmtree(root / "awq"))
    with pytest.raises(BadInput, match="removed meanwhile"):
        check_regular(root / "awq")


def test_a_checkpoint_goes_when_training_ends(root, once):
    checkpoint = root / "ft" / ".travel.checkpoint"
    checkpoint.mkdir(parents=True)
    once(removing.Path, "iterdir", lambda: shutil.rmtree(checkpoint))
    assert list(removing._unfinished(root / "ft" / "travel")) == []


def test_a_log_goes_when_its_command_begins_again(root, once, cli):
    def write() -> Path:
        log = root / "logs" / "phicli-quantize.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("said")
        return log

    log = write()
    once(Path, "lstat", log.unlink)
    assert logs.find_logs(root) == {}
    once(logs, "find_logs", write().unlink, after=True)
    assert cli("logs", "--root", root, "--json").out.strip() == "[]"
    once(logs, "find_logs", write().unlink, after=True)
    done = cli("logs", "quantize", "--root", root)
    assert done.code == 2 and "no log of quantize; there are: none" in done.err


def test_what_is_deployed_is_of_one_model(root, once, tmp_path):
    publish(root / "onnx-ao", "a-old")
    once(image.shutil, "copyfile", lambda: publish(root / "onnx-ao", "b-new"), after=True)
    image._copy(root / "onnx-ao", tmp_path / "image")
    assert {path.name for path in (tmp_path / "image").iterdir()} == {"b-new", "phicli.json"}
    stages.check_whole(tmp_path / "image")
