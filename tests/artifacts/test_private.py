"""Folders of one's own: who else could write to them."""

import os

import pytest

from phicli.artifacts.private import create_file, others_can_write, private_folder
from phicli.errors import Missing

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes say nothing on Windows")


def test_a_group_of_ones_own_may_write_and_another_may_not(tmp_path, monkeypatch):
    import grp
    import pwd

    user = pwd.getpwuid(os.getuid()).pw_name
    folder = tmp_path / "group"
    folder.mkdir()
    folder.chmod(0o775)
    members: list[str] = []
    monkeypatch.setattr(grp, "getgrgid", lambda group: grp.struct_group((user, "x", group, members)))
    assert others_can_write(folder) is None
    members.append("somebody")
    assert others_can_write(folder) == folder
    monkeypatch.setattr(grp, "getgrgid", lambda group: grp.struct_group(("staff", "x", group, [])))
    assert others_can_write(folder) == folder
    folder.chmod(0o777)
    assert others_can_write(folder / "..") is None and others_can_write(folder) == folder


def test_a_folder_is_made_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        made = private_folder(tmp_path / "a" / "b")
        assert made.stat().st_mode & 0o777 == 0o700 == (tmp_path / "a").stat().st_mode & 0o777
    finally:
        os.umask(before)
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(Missing, match="others can write"):
        private_folder(tmp_path / "a" / "b")


def test_a_file_is_created_only_where_nothing_is(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("victim", "link"):
        with pytest.raises(FileExistsError):
            create_file(tmp_path / name)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "dangling")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "nowhere").exists()
