"""Models whose layout is not all there: no chat template, no system role, settings that leave the end of a turn out."""

import json
import shutil
from pathlib import Path

import pytest

from phicli.config.steps import EvaluateConfig
from phicli.dataset.encoding import RowEncoder
from phicli.text import Conversation as Talk
from phicli.text import TextCodec
from phicli.text.layout import MERGED_SYSTEM

TRAINED = ("--max-steps", "2", "--batch-size", "2", "--lora-r", "4", "--device", "cpu")
QUICK = ("--samples", "4", "--seq-len", "64", "--rounding", "nearest", "--device", "cpu")


def copy_of(tiny: Path, folder: Path, template: str | None) -> Path:
    """The built-in model with another chat template, or with none."""
    shutil.copytree(tiny, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def rows(path: Path, *systems: str) -> Path:
    texts = [(f"Where is {n}?", f"It is at {n}.") for n in range(6)]
    path.write_text("".join(json.dumps({"messages": [
        *({"role": "system", "content": system} for system in systems),
        {"role": "user", "content": asked}, {"role": "assistant", "content": said}]}) + "\n" for asked, said in texts))
    return path


@pytest.fixture(scope="module")
def plain_lab(tiny, tmp_path_factory):
    """A root with all stages of a base model without a chat template, and what the commands said."""
    from phicli.cli.main import main

    place = tmp_path_factory.mktemp("plain")
    model, root, data = copy_of(tiny, place / "base", None), place / "root", rows(place / "rows.jsonl")
    for command in (("quantize", "--model", model, *QUICK), ("finetune", "--model", model, "--data", data, *TRAINED),
                    ("optimize", "--model", model, "--adapter", "travel", "--device", "cpu")):
        assert main([str(part) for part in (*command, "--root", root)]) == 0
    return model, root, data


def test_a_base_model_chats_as_its_adapter_was_trained(cli, plain_lab):
    model, root, data = plain_lab
    template = (root / "ft" / "travel" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "Assistant:" in template
    assert (root / "onnx-ao" / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert (root / "onnx-ao" / "adapters" / "travel.jinja").read_text(encoding="utf-8") == template
    done = cli("chat", "--root", root, "--adapter", "travel", "-p", "Where is 1?", "--max-new-tokens", "4", "--json",
               "--device", "cpu")
    assert done.code == 0, done.err
    wanted = TextCodec(model, template).encode_chat([{"role": "user", "content": "Where is 1?"}])
    assert json.loads(done.out)["prompt_tokens"] == len(wanted)
    done = cli("evaluate", "--root", root, "--model", model, "--eval-data", data, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    codec = TextCodec(model, template)
    told = [codec.turns.end, codec.tokenizer.decode(wanted, skip_special_tokens=False)]
    assert told == ["<|endoftext|>", "User: Where is 1?\nAssistant:\n"]


def test_a_model_with_nothing_but_config_and_tokenizer_ends_its_answers_as_config_says(cli, tiny, tmp_path):
    model, root = copy_of(tiny, tmp_path / "model", None), tmp_path / "root"
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    assert TextCodec(model).end_of_text == [json.loads((model / "config.json").read_text())["eos_token_id"]]
    done = cli("inspect", rows(tmp_path / "rows.jsonl"), "--model", model)
    assert done.code == 0 and "it gets a plain one" in done.err, done.err
    done = cli("optimize", "--base", model, "--root", root, "--device", "cpu")
    assert done.code == 0 and "chat lays it out plainly" in done.err, done.err
    template = (root / "onnx-ao" / "chat_template.jinja").read_text(encoding="utf-8")
    assert TextCodec(root / "onnx-ao").turns.end == TextCodec(model, template).turns.end == "<|endoftext|>"
    done = cli("chat", "--root", root, "-p", "Where is 1?", "--max-new-tokens", "4", "--device", "cpu")
    assert done.code == 0 and done.out.strip(), done.err


@pytest.mark.parametrize("ends", ["-1", "[[0], true, 3.5, 1e99]", "99999999999", '"x"', "null"])
def test_ends_that_no_token_is_are_none(tiny, tmp_path, ends):
    model = copy_of(tiny, tmp_path / "model", None)
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": json.loads(ends)}))
    assert TextCodec(model).end_of_text == []


def test_a_text_template_is_what_a_base_model_chats_under(cli, plain_lab, tmp_path):
    model, root, _ = plain_lab
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"q": f"Is it {n}?", "a": f"It is {n}."}) + "\n" for n in range(6)))
    layout = "### Question\\n{q}\\n### Answer\\n{a}<|endoftext|>"
    done = cli("finetune", "--root", root, "--model", model, "--data", data, "--text-template", layout,
               "--name", "asked", *TRAINED)
    assert done.code == 0, done.err
    template = (root / "ft" / "asked" / "chat_template.jinja").read_text(encoding="utf-8")
    text = TextCodec(model, template).render_chat([{"role": "user", "content": "Is it 1?"}])
    assert text == "### Question\nIs it 1?\n### Answer\n"


NO_SYSTEM = ("{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
             "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")


def test_a_system_message_that_is_merged_is_said_aloud_once(cli, tiny, tmp_path):
    model = copy_of(tiny, tmp_path / "model", NO_SYSTEM)
    with_system, without = rows(tmp_path / "with.jsonl", "Be brief."), rows(tmp_path / "without.jsonl")
    for data, times in ((with_system, 1), (without, 0)):
        done = cli("inspect", data, "--model", model)
        assert done.code == 0, done.err
        assert done.err.count(MERGED_SYSTEM) == times
    root = tmp_path / "root"
    done = cli("finetune", "--base", model, "--root", root, "--data", with_system, *TRAINED)
    assert (done.code, done.err.count(MERGED_SYSTEM)) == (0, 1), done.err
    codec = TextCodec(model)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    assert codec.render_chat(asked) == "<|user|>\nBe brief.\n\nWhere?<|end|>\n<|assistant|>\n"


def test_the_end_of_a_turn_ends_an_answer_though_the_settings_leave_it_out(cli, tiny, tmp_path):
    model = copy_of(tiny, tmp_path / "model", NO_SYSTEM)
    (model / "generation_config.json").unlink()
    done = cli("optimize", "--base", model, "--root", tmp_path / "root", "--device", "cpu")
    assert done.code == 0, done.err
    assert "answers end at <|end|>" in done.err
    known = json.loads((tmp_path / "root" / "onnx-ao" / "genai_config.json").read_text())["model"]["eos_token_id"]
    assert known == [0, TextCodec(model).special["<|end|>"][0]]
    done = cli("chat", "--root", tmp_path / "root", "-p", "Hi", "--system", "Be brief.", "--max-new-tokens", "2",
               "--device", "cpu")
    assert (done.code, done.err.count(MERGED_SYSTEM)) == (0, 1), done.err


CHATML = ("{% for m in messages %}{{ '<|user|>' + m.role + '\n' + m.content + '<|system|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}")


def test_an_adapter_that_is_added_brings_the_end_of_its_own_template(cli, plain_lab, tmp_path):
    model, root, data = plain_lab
    before = root / "onnx-ao" / "genai_config.json"
    ends, inode = json.loads(before.read_text())["model"]["eos_token_id"], before.stat().st_ino
    (tmp_path / "other.jinja").write_text(CHATML, encoding="utf-8")
    for command in (("finetune", "--data", data, "--chat-template", tmp_path / "other.jinja", "--name", "other",
                     *TRAINED),
                    ("optimize", "--adapter", "travel", "--adapter", "other", "--device", "cpu")):
        done = cli(*command, "--model", model, "--root", root)
        assert done.code == 0, done.err
    ends = ends if isinstance(ends, list) else [ends]
    after = json.loads(before.read_text())["model"]["eos_token_id"]
    assert after == [*ends, TextCodec(model).special["<|system|>"][0]] and before.stat().st_ino != inode
    asked = cli("chat", "--root", root, "--adapter", "other", "-p", "Where?", "--max-new-tokens", "2", "--json",
                "--device", "cpu")
    wanted = TextCodec(model, CHATML).encode_chat([{"role": "user", "content": "Where?"}])
    assert json.loads(asked.out)["prompt_tokens"] == len(wanted)


def test_the_first_token_of_an_answer_is_trained_under_the_plain_template(tiny, tmp_path):
    model = copy_of(tiny, tmp_path / "model", None)
    encoder = RowEncoder(model, EvaluateConfig("tiny"))
    row = encoder.encode(Talk.of({"role": "user", "content": "Where?"},
                                 {"role": "assistant", "content": "Start here."}))
    learnt = [ident for ident, counts in zip(row.ids, row.mask, strict=True) if counts]
    assert encoder.codec.tokenizer.decode(learnt, skip_special_tokens=False) == "Start here.<|endoftext|>"


def test_a_model_whose_answers_no_token_ends_is_refused(cli, tiny, tmp_path):
    model, root = copy_of(tiny, tmp_path / "model", None), tmp_path / "root"
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_text())
    del config["eos_token_id"]
    (model / "config.json").write_text(json.dumps(config))
    done = cli("optimize", "--base", model, "--root", root, "--device", "cpu")
    assert done.code == 3 and "no token ends an answer" in done.err and "eos_token_id" in done.err, done.err
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    done = cli("optimize", "--base", model, "--root", root, "--device", "cpu")
    assert done.code == 0, done.err
