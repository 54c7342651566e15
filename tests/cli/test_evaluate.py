"""`phicli evaluate` through the real main(): torch and ONNX stages of the same models."""

import json
import shutil

import numpy as np
import pytest
import torch

from phicli.dataset.contents import RowParser
from phicli.text import TextCodec

ROWS = [
    {"prompt": "Where should I go in Kyoto?", "response": "See the gates at sunrise, then the market."},
    {"prompt": "Is Lisbon <|end|> steep?", "response": "Very. Take the tram."},
    {"prompt": "When?", "response": "In May."},
]
FEW = ("--samples", "4", "--seq-len", "64", "--rounding", "nearest")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def lab(optimized, tiny, tmp_path_factory):
    """A root with all stages. "rtn" holds the original's weights unchanged, and the float32 ONNX model has the same:
    so what the two sides of the evaluation give must agree. The adapter is a random LoRA, on both sides the same."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from phicli.checkpoints.peft_folder import read_peft
    from phicli.cli.main import main
    from phicli.export.adapters import convert_adapter

    root = tmp_path_factory.mktemp("lab")
    assert main(["quantize", "--model", "tiny", "--root", str(root), *FEW]) == 0
    shutil.copytree(tiny, root / "rtn")
    shutil.copytree(optimized / "onnx-ao", root / "onnx-ao")
    shutil.rmtree(root / "onnx-ao" / "adapters")
    (root / "onnx-ao" / "adapters").mkdir()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(root / "rtn")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(root / "ft" / "travel")
    convert_adapter(root / "onnx-ao", read_peft(root / "ft" / "travel"),
                    root / "onnx-ao" / "adapters" / "travel.onnx_adapter", root / "ft" / "travel")
    return root


@pytest.fixture(scope="session")
def measured(lab, rows_file):
    """The document of one evaluation of everything, by stage."""
    from phicli.cli.main import main

    assert main(["evaluate", "--model", "tiny", "--root", str(lab), "--eval-data", str(rows_file),
                 "--algorithm", "rtn"]) == 0
    document = json.loads((lab / "evaluation.json").read_text())
    return document, {stage["stage"]: stage for stage in document["stages"]}


def test_every_stage_is_measured_on_the_same_tokens(measured, tiny):
    document, stages = measured
    assert list(stages) == ["original", "awq", "rtn", "rtn + travel", "onnx", "onnx + travel"]
    encoded = [TextCodec(tiny).encode_conversation(RowParser().read(row).content) for row in ROWS]
    assert document["tokens"] == sum(len(e.targets) for e in encoded)
    assert document["rows"] == 3 and document["cut_rows"] == 0
    assert all(stage["missing"] is None and stage["bytes"] > 1e6 for stage in stages.values())


def test_perplexity_is_that_of_transformers_own_loss(measured, tiny):
    from transformers import AutoModelForCausalLM

    _, stages = measured
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    loss, tokens = 0.0, 0
    for row in ROWS:
        encoded = TextCodec(tiny).encode_conversation(RowParser().read(row).content)
        ids = torch.tensor([encoded.ids])
        labels = ids.clone()
        labels[~torch.tensor([encoded.mask])] = -100
        n = len(encoded.targets)
        with torch.no_grad():
            loss += model(input_ids=ids, labels=labels).loss.item() * n
        tokens += n
    assert stages["original"]["perplexity"] == pytest.approx(np.exp(loss / tokens), rel=1e-4)


def test_same_weights_agree_and_others_do_not(measured):
    _, stages = measured
    assert stages["rtn"]["kl"] == pytest.approx(0, abs=1e-9) and stages["rtn"]["top1"] == 1
    assert stages["onnx"]["kl"] < 1e-6 and stages["onnx"]["kl_torch"] < 1e-6 and stages["onnx"]["top1_torch"] == 1
    assert stages["onnx"]["compared_with"] == "rtn" and stages["onnx + travel"]["compared_with"] == "rtn + travel"
    assert stages["onnx + travel"]["kl_torch"] < 1e-5 and stages["onnx + travel"]["top1_torch"] == 1
    assert stages["rtn + travel"]["kl"] > 1e-3
    assert stages["onnx + travel"]["kl"] == pytest.approx(stages["rtn + travel"]["kl"], rel=1e-3)
    assert 1e-6 < stages["awq"]["kl"] < 0.5
    assert stages["awq"]["bytes"] < 0.65 * stages["original"]["bytes"]


def test_table_with_missing_stages_and_a_limit_of_rows(cli, lab, rows_file, tmp_path):
    shutil.copytree(lab / "rtn", tmp_path / "rtn")
    flags = ("--model", "tiny", "--root", tmp_path, "--eval-data", rows_file, "--rows", "2")
    done = cli("evaluate", *flags)
    assert done.code == 0, done.err
    assert "2 rows" in done.out and "original" in done.out and "\x1b" not in done.out + done.err
    assert "rtn + adapter (not made: phicli finetune)" in done.out and "onnx (not made: phicli optimize)" in done.out
    cut = cli("evaluate", *flags, "--seq-len", "24", "--json")
    assert cut.code == 0 and json.loads(cut.out)["cut_rows"] >= 1
    assert {p.name for p in tmp_path.iterdir()} == {"rtn", "evaluation.json", "logs"}


def test_wrong_input_writes_nothing(cli, lab, rows_file, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(ROWS[0]) + "\n{\n")
    (lab / "evaluation.json").unlink(missing_ok=True)

    def fails(*flags):
        done = cli("evaluate", "--model", "tiny", "--root", lab, *flags)
        assert done.out == "" and "Traceback" not in done.err and not (lab / "evaluation.json").exists()
        return done.code, done.err

    code, message = fails("--eval-data", broken)
    assert code == 3 and "broken.jsonl:2" in message
    code, message = fails("--eval-data", rows_file, "--adapter", "paris")
    assert code == 3 and "there are: travel" in message
    code, message = fails("--eval-data", tmp_path / "none.jsonl")
    assert code == 3 and "none.jsonl" in message
    code, message = fails("--eval-data", rows_file, "--seq-len", "8")
    assert code == 3 and "--seq-len" in message
    code, message = fails("--eval-data", rows_file, "--text-template", "{question}{response}")
    assert code == 3 and "question" in message
    code, message = fails("--eval-data", rows_file, "--rows", "0")
    assert code == 2
    if not torch.cuda.is_available():
        code, message = fails("--eval-data", rows_file, "--device", "cuda")
        assert code == 4 and "CUDA" in message


def test_stages_with_other_tokens_are_refused(cli, lab, rows_file, tmp_path):
    shutil.copytree(lab / "rtn", tmp_path / "rtn")
    path = tmp_path / "rtn" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:300]
    path.write_text(json.dumps(tokenizer))
    done = cli("evaluate", "--model", "tiny", "--root", tmp_path, "--eval-data", rows_file)
    assert done.code == 3 and "other tokens" in done.err


def test_nothing_made_yet(cli, rows_file, tmp_path):
    done = cli("evaluate", "--model", "tiny", "--root", tmp_path / "none", "--eval-data", rows_file)
    assert done.code == 4 and "phicli quantize" in done.err and not (tmp_path / "none").exists()
