"""docs/lab.ipynb: it is kept without outputs, runs as it is, and what it shows is what it should show."""

import json
import re
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "docs" / "lab.ipynb"


def said(notebook) -> str:
    """All that the cells printed on stdout."""
    return "".join(output["text"] for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
                   if output["output_type"] == "stream" and output["name"] == "stdout")


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_it_runs_and_the_adapter_has_learned(notebook):
    executed, place = notebook
    text = said(executed)
    assert "400 rows" in text and "warnings: none" in text
    before, after = map(float, re.search(r"held-out loss ([\d.]+) -> ([\d.]+)", text).groups())
    assert after < before - 2
    perplexity = {name.strip(): float(value) for name, value in re.findall(r"^(.*?) perplexity +([\d.]+)", text, re.M)}
    assert set(perplexity) == {"original", "awq", "awq + travel", "onnx", "onnx + travel"}
    assert perplexity["onnx + travel"] < perplexity["onnx"] / 10
    assert abs(perplexity["onnx + travel"] / perplexity["awq + travel"] - 1) < 0.05
    plain, adapted = (re.search(f"^{who}: (.+)$", text, re.M)[1] for who in ("no adapter", "travel"))
    assert plain != adapted
    assert (place / "models" / "notebook" / "onnx-ao" / "adapters" / "travel.onnx_adapter").is_file()
