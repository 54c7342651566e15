"""What is read from a folder that other folders take the place of meanwhile."""

import pytest

from phicli.artifacts import publishing as publishing_module
from phicli.artifacts import stages
from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.publishing import publishing
from phicli.workflow.plan import CURRENT, judge


def publish(folder, number: int) -> None:
    with publishing(folder) as fresh:
        (fresh / f"part-{number}").touch()


def test_a_folder_with_the_inode_of_the_one_before(tmp_path):
    """Twice replaced while it is read, so that the third has the first one's inode: it is read again."""
    folder, tries = tmp_path / "model", []
    publish(folder, 0)
    first = folder.stat().st_ino

    def work() -> list[str]:
        tries.append(sorted(path.name for path in folder.iterdir()))
        if len(tries) == 1:
            number = 1
            publish(folder, number)
            while number < 2 or (folder.stat().st_ino != first and number < 20):
                number += 1
                publish(folder, number)
            (folder / tries[0][0]).read_bytes()
        return tries[-1]

    found = of_one_generation(folder, work)
    assert len(tries) == 2 and found == tries[1] != tries[0]


def publish_stage(folder, number: int) -> None:
    with publishing(folder) as fresh:
        (fresh / f"part-{number}").write_text(str(number))
        stages.write_manifest(fresh, stages.Manifest("quantize", {}, {}))


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_result_that_is_replaced_while_it_is_judged(tmp_path, monkeypatch, in_one_step):
    """Its manifest names other files than the folder has by then: that is no damage, and no fault."""
    if not in_one_step:
        monkeypatch.setattr(publishing_module, "exchange", lambda a, b: False)
    folder, read, replacements = tmp_path / "awq", stages.file_hashes, []

    def replaced_first(paths):
        if replacements:
            monkeypatch.setattr(stages, "file_hashes", read)
            publish_stage(folder, replacements.pop())
        return read(paths)

    def while_replaced(number: int, work):
        publish_stage(folder, number - 1)
        replacements.append(number)
        monkeypatch.setattr(stages, "file_hashes", replaced_first)
        return work()

    assert while_replaced(1, lambda: judge(folder, "quantize", {}, {})) == CURRENT
    while_replaced(3, lambda: stages.check_whole(folder))
    assert while_replaced(5, lambda: stages.fingerprint(folder)) == stages.fingerprint(folder)
