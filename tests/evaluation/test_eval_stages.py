"""Which stages are found under a root, and what each is compared with."""

import json

import pytest

from phicli.artifacts.stages import write_sealed
from phicli.errors import BadInput, Missing
from phicli.evaluation.plan import EvaluationPlan
from phicli.evaluation.stages import find_stages


def make(root, *files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        if path.name == "adapter_config.json":
            path.write_text(json.dumps({"base_model_name_or_path": str(root / "rtn")}))


def test_nothing_made(tmp_path):
    with pytest.raises(Missing) as e:
        find_stages(tmp_path, "tiny", "awq", None)
    assert "phicli quantize" in e.value.hint


def test_missing_stages_are_named(tmp_path):
    make(tmp_path, "awq/config.json")
    found = {stage.name: stage.missing for stage in find_stages(tmp_path, "tiny", "awq", None)}
    assert found == {"original": None, "awq": None, "awq + adapter": "not made: phicli finetune",
                     "onnx": "not made: phicli optimize", "onnx + adapter": "not made: phicli optimize"}


def test_all_stages_and_what_they_are_compared_with(tmp_path):
    make(tmp_path, "awq/config.json", "rtn/config.json", "ft/travel/adapter_config.json",
         "ft/.half.new-1/adapter_config.json", "onnx-ao/genai_config.json", "onnx-ao/adapters/travel.onnx_adapter",
         "onnx-ao/adapters/food.onnx_adapter")
    stages = find_stages(tmp_path, "tiny", "awq", None)
    assert [(s.name, s.twin, s.missing) for s in stages] == [
        ("original", None, None), ("awq", None, None), ("rtn", None, None), ("rtn + travel", None, None),
        ("onnx", "awq", None), ("onnx + food", None, None), ("onnx + travel", "rtn + travel", None)]
    assert [s.name for s in find_stages(tmp_path, "tiny", "rtn", "travel")] == [
        "original", "awq", "rtn", "rtn + travel", "onnx", "onnx + travel"]
    with pytest.raises(BadInput, match="there are: food, travel"):
        find_stages(tmp_path, "tiny", "awq", "paris")


def test_a_stage_weighs_what_it_needs(tmp_path):
    make(tmp_path, "onnx-ao/genai_config.json", "onnx-ao/phicli.json", "onnx-ao/adapters/travel.onnx_adapter",
         "onnx-ao/adapters/food.onnx_adapter")
    weight = {s.name: s.bytes for s in find_stages(tmp_path, "tiny", "awq", None) if s.onnx}
    assert weight == {"onnx": 2, "onnx + food": 4, "onnx + travel": 4}


def test_damaged_adapter_settings(tmp_path):
    make(tmp_path, "awq/config.json", "ft/travel/adapter_config.json")
    (tmp_path / "ft" / "travel" / "adapter_config.json").write_text("[]")
    with pytest.raises(BadInput, match="damaged"):
        find_stages(tmp_path, "tiny", "awq", None)


def test_rows_that_are_gone_are_no_fault_of_the_result(tmp_path):
    write_sealed(tmp_path / "evaluation.json", {"stages": [], "inputs": {}, "settings": {}, "versions": {}})
    plan = EvaluationPlan("evaluate", tmp_path / "evaluation.json", {"eval_data": tmp_path / "gone.jsonl"}, {})
    with pytest.raises(BadInput, match=r"^\S*gone.jsonl: cannot be read"):
        plan.verdict()
