"""Libraries imported in the background, and a process that ends without taking them apart."""

import gc
import subprocess
import sys
import threading
import time

import pytest

from phicli.steps.importing import imports


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Makes modules of the given texts; gives their names."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**texts: str) -> list[str]:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        return list(texts)

    yield make
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("at_once", [True, False])
def test_all_is_imported_when_it_says_so(modules, at_once):
    import_it = "import gc, threading; collecting, thread = gc.isenabled(), threading.current_thread()"
    first, second = modules(importing_a=import_it, importing_b=import_it)
    done = []

    def beside(reached) -> None:
        done.append((threading.current_thread(), reached(second)))

    with imports(first, second, at_once=at_once, beside=beside) as imported:
        imported()
        assert (sys.modules[first].thread is not threading.main_thread()) == at_once
        assert not sys.modules[second].collecting and [went_on for _, went_on in done] == [True] * at_once
        assert all(thread is not threading.main_thread() for thread, _ in done)
    assert gc.isenabled()


def test_nothing_is_imported_unless_it_is_needed(modules):
    (name,) = modules(importing_c="")
    with imports(name, at_once=False):
        pass
    assert name not in sys.modules and gc.isenabled()


def test_an_error_stops_after_the_module_in_progress(modules):
    first, second = modules(importing_d="import time; time.sleep(0.3)", importing_e="")
    with pytest.raises(KeyboardInterrupt), imports(first, second, at_once=True):
        time.sleep(0.1)
        raise KeyboardInterrupt
    time.sleep(0.5)
    assert first in sys.modules and second not in sys.modules and gc.isenabled()


@pytest.mark.parametrize("at_once", [True, False])
def test_what_importing_raises_is_raised(modules, at_once):
    (name,) = modules(importing_f="raise RuntimeError('broken')")
    with pytest.raises(RuntimeError, match="broken"), imports(name, at_once=at_once) as imported:
        imported()
    assert gc.isenabled()


def test_what_goes_wrong_beside_is_not_the_steps(modules):
    (name,) = modules(importing_g="")

    def fails(reached) -> None:
        raise RuntimeError

    with imports(name, at_once=True, beside=fails) as imported:
        imported()
    assert name in sys.modules


@pytest.mark.parametrize(("arguments", "code"), [(["config", "--json"], 0), (["--no-such-option"], 2)])
def test_the_end_calls_what_libraries_have_registered_and_takes_nothing_apart(arguments, code):
    text = f"""
import atexit, sys, threading, time
from phicli.cli import main as cli
from phicli.cli.entry import entry
real = cli.main
class Loaded:
    def __del__(self): print("taken apart", flush=True)
def main():
    sys.modules["loaded"] = Loaded()
    atexit.register(print, "registered")
    threading.Thread(target=lambda: (time.sleep(3), print("a thread"))).start()
    return real({arguments!r})
cli.main = main
entry()
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout.endswith("a thread\nregistered\n")
