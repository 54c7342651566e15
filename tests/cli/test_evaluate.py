"""`phicli evaluate` through the real main(): torch and ONNX stages of the same models."""

import json
import shutil

import numpy as np
import pytest
import torch

from phicli import evaluate
from phicli.artifacts.stages import Manifest, fingerprint, write_manifest
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


def plain_figures(model, reference, rows):
    """Perplexity, KL and top-1 agreement of two transformers models, by nothing but torch."""
    nll, kl, same, tokens = 0.0, 0.0, 0, 0
    for ids, mask in rows:
        with torch.no_grad():
            p, q = (torch.log_softmax(m(input_ids=torch.tensor([ids])).logits[0].double(), -1)
                    for m in (reference, model))
        for at in (at for at, counts in enumerate(mask) if counts and at):
            nll -= q[at - 1, ids[at]].item()
            kl += (p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum().item()
            same += int(p[at - 1].argmax() == q[at - 1].argmax())
            tokens += 1
    return float(np.exp(nll / tokens)), kl / tokens, same / tokens


def test_figures_are_those_of_a_plain_torch_loop(measured, lab, tiny):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, stages = measured
    rows = [(one.ids, one.mask) for one in
            (TextCodec(tiny).encode_conversation(RowParser().read(row).content) for row in ROWS)]
    reference, base = (AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval() for _ in range(2))
    perplexity, kl, top1 = plain_figures(PeftModel.from_pretrained(base, lab / "ft" / "travel").eval(), reference, rows)
    for name in ("rtn + travel", "onnx + travel"):
        assert stages[name]["perplexity"] == pytest.approx(perplexity, rel=1e-3)
        assert stages[name]["kl"] == pytest.approx(kl, rel=1e-3) and stages[name]["top1"] == pytest.approx(top1)


@pytest.fixture
def named(cli, lab, tiny, tmp_path):
    """named(file, *flags): the document of an evaluation of named stages."""
    def run(file, *flags):
        done = cli("evaluate", "--model", "tiny", "--root", tmp_path / "none", "--eval-data", file, "--json", *flags)
        assert done.code == 0, done.err
        assert not (tmp_path / "none").exists()
        return json.loads(done.out)

    return run


def test_named_stages_on_a_text(named, lab, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    text = tmp_path / "text.txt"
    text.write_text("The tram climbs the hill. At the top there is a small square, and a fountain.\n" * 8)
    document = named(text, "--stage", tiny, "--stage", f"{lab / 'onnx-ao'}+travel", "--stage", lab / "ft" / "travel",
                     "--stage", lab / "awq", "--seq-len", "64")
    first, onnx, adapter, awq = document["stages"]
    assert document["reference"] == first["stage"] == str(tiny) and first["kl"] is None and document["rows"] > 2
    codec = TextCodec(tiny)
    ids, begin = codec.encode_text(text.read_text()), codec.tokens.begin
    room = 64 - len(begin)
    rows = [([*begin, *ids[at : at + room]], [False] * len(begin) + [True] * room) for at in range(0, len(ids), room)]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    perplexity, kl, _ = plain_figures(model, model, [(ids, mask[: len(ids)]) for ids, mask in rows])
    assert first["perplexity"] == pytest.approx(perplexity, rel=1e-3) and kl == 0
    assert onnx["perplexity"] == pytest.approx(adapter["perplexity"], rel=1e-3) and onnx["kl"] > 1e-3
    assert awq["perplexity_ratio"] == pytest.approx(awq["perplexity"] / first["perplexity"], rel=1e-6)


def test_stages_in_another_order_are_compared_with_another_one(lab, tiny, rows_file, tmp_path):
    pair = [str(tiny), str(lab / "awq")]
    for stages in (pair, pair[::-1]):
        document = evaluate("tiny", eval_data=str(rows_file), stages=stages, output=tmp_path / "found.json",
                            device="cpu")
        assert [stage["stage"] for stage in document["stages"]] == stages and document["reference"] == stages[0]
        assert document["stages"][0]["kl"] is None and document["stages"][1]["kl"] > 0


def test_answers_side_by_side_and_a_metric_of_a_package(cli, named, lab, tiny, rows_file, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "mine-1.dist-info").mkdir(parents=True)
    (site / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    offered = "[phicli.metrics]\nlength = mine:length\nbad = mine:bad\n"
    (site / "mine-1.dist-info" / "entry_points.txt").write_text(offered)
    (site / "mine.py").write_text("def length(said):\n    return sum(len(a) for _, _, a in said) / len(said)\n"
                                  "def bad(said):\n    raise KeyError('no')\n")
    monkeypatch.syspath_prepend(site)
    flags = ("--stage", lab / "rtn", "--stage", lab / "onnx-ao", "--max-new-tokens", "12")
    document = named(rows_file, *flags, "--metric", "length", "--metric", "exact-match", "--generate", "2")
    answers = [one["answers"] for one in document["answers"]]
    assert [one["prompt"] for one in document["answers"]] == [row["prompt"] for row in ROWS[:2]]
    assert [one["reference"] for one in document["answers"]] == [row["response"] for row in ROWS[:2]]
    for stage in document["stages"]:
        said = [one[stage["stage"]] for one in answers]
        assert stage["metrics"]["length"]["value"] == np.mean([len(text) for text in said])
        assert stage["metrics"]["exact-match"] == {"value": 0.0, "interval": None}
    assert answers[0][str(lab / "rtn")] == answers[0][str(lab / "onnx-ao")] != ""  # the same weights
    common = ("evaluate", "--model", "tiny", "--root", tmp_path / "none", "--eval-data", rows_file, *flags[:2])
    failed, unknown = cli(*common, "--metric", "bad"), cli(*common, "--metric", "lengt")
    assert failed.code == 3 and "'bad' failed: KeyError" in failed.err
    assert unknown.code == 2 and "did you mean 'length'" in unknown.err
    shown = cli(*common, "--generate", "1")
    assert ROWS[0]["prompt"] in shown.out.replace("\n", " ") and shown.code == 0


def test_an_adapter_measured_on_what_it_was_trained_on_is_named(cli, lab, rows_file, tmp_path):
    for name in ("rtn", "ft"):
        shutil.copytree(lab / name, tmp_path / name)
    flags = ("--model", "tiny", "--root", tmp_path, "--algorithm", "rtn", "--rows", "1")
    for trained, said in ((rows_file, True), (lab / "rtn" / "config.json", False)):
        write_manifest(tmp_path / "ft" / "travel", Manifest("finetune", {"data": fingerprint(trained)}, {}))
        done = cli("evaluate", *flags, "--eval-data", rows_file)
        assert done.code == 0 and (f"rtn + travel was trained on rows of {rows_file}" in done.err) is said, done.err


def test_a_task_that_lm_eval_does_not_have_is_refused_before_anything_runs(cli, lab, rows_file):
    pytest.importorskip("lm_eval")
    done = cli("evaluate", "--stage", lab / "rtn", "--eval-data", rows_file, "--task", "arc_eazy")
    assert done.code == 2 and "lm-eval has no task arc_eazy; there are: arc_easy" in done.err, done.err


def test_tasks_need_lm_eval(cli, lab, rows_file, tmp_path, monkeypatch):
    monkeypatch.setattr("phicli.evaluation.harness.find_spec", lambda name: None)
    done = cli("evaluate", "--model", "tiny", "--stage", lab / "rtn", "--eval-data", rows_file, "--task", "arc_easy")
    assert done.code == 4 and "phicli[lm-eval]" in done.err


def test_a_task_of_lm_eval(named, cli, lab, tiny, rows_file, tmp_path):
    pytest.importorskip("lm_eval")
    data, task = tmp_path / "data.json", tmp_path / "task.yaml"
    data.write_text("".join(json.dumps({"q": q, "choices": ["in May.", "the tram."], "answer": a}) + "\n"
                            for q, a in (("When? It is best", 0), ("How? Take", 1))))
    said = {"task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]}
    task.write_text(json.dumps(said))
    document = named(rows_file, "--stage", lab / "rtn", "--stage", lab / "onnx-ao", "--task", task)
    codec, expected = TextCodec(tiny), []
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    for q, answer in (("When? It is best", 0), ("How? Take", 1)):
        scores = []
        for choice in ("in May.", "the tram."):
            before, ids = len(codec.encode_text(q)), codec.encode_text(f"{q} {choice}")
            begin = codec.tokens.begin or codec.end_of_text
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*begin, *ids]])).logits[0].log_softmax(-1)
            scores.append(sum(logits[len(begin) + at - 1, ids[at]].item() for at in range(before, len(ids))))
        expected.append(int(np.argmax(scores)) == answer)
    for stage in document["stages"]:
        assert stage["tasks"]["mine"]["acc,none"] == np.mean(expected)
    task.write_text(json.dumps(said).replace('"{{q}}"', "!function evil.run"))
    done = cli("evaluate", "--model", "tiny", "--stage", lab / "rtn", "--eval-data", rows_file, "--task", task)
    assert done.code == 3 and "code of its own" in done.err
