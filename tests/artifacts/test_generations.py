"""What is read from a folder that other folders take the place of meanwhile."""

from phicli.artifacts.generations import of_one_generation
from phicli.artifacts.publishing import publishing


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
