"""Where the built library is kept, while others remove it."""

import _ctypes
import shutil
from pathlib import Path

import pytest

from phicli.artifacts.cache import user_cache
from phicli.errors import Missing
from phicli.kernels.keeping import kept_library


def test_a_library_whose_folder_goes_while_it_is_built_is_built_again(tmp_path, monkeypatch):
    """`phicli rm cache/kernels` in a second terminal: the compiler has no place for its output then."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tries = []

    def build(scratch: Path) -> bytes:
        tries.append(scratch)
        if len(tries) == 1:
            shutil.rmtree(scratch.parent)
            raise Missing("the C compiler failed: No such file or directory")
        return Path(_ctypes.__file__).read_bytes()

    library, trouble = kept_library("ops-0", build)
    assert (library.parent, trouble, len(tries)) == (user_cache() / "ops-0", None, 2)
    assert kept_library("ops-0", build) == (library, None) and len(tries) == 2


def test_a_compiler_that_fails_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tries = []

    def build(scratch: Path) -> bytes:
        tries.append(scratch)
        raise Missing("the C compiler failed")

    with pytest.raises(Missing, match="compiler"):
        kept_library("ops-0", build)
    assert len(tries) == 1
