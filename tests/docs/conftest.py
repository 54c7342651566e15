"""The lab that docs/lab.ipynb makes, once for all tests of the documents."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def notebook(tmp_path_factory):
    """docs/lab.ipynb after it was executed in a folder of its own, and that folder."""
    import nbformat
    from nbclient import NotebookClient

    place = tmp_path_factory.mktemp("notebook")
    (place / "docs").mkdir()
    shutil.copytree(ROOT / "data", place / "data")
    executed = nbformat.read(ROOT / "docs" / "lab.ipynb", as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(place / "jupyter"))
        patch.setenv("PYTHONPATH", str(ROOT))
        NotebookClient(executed, timeout=250, resources={"metadata": {"path": str(place / "docs")}}).execute()
    return executed, place
