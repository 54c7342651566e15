"""A text template beside the chat template: whether chat sends what is trained; and where a text of a model begins."""

import json
import shutil

import pytest
from lab_rows import calibration
from tokenizers import Tokenizer, processors

from phicli.config import EvaluateConfig
from phicli.dataset.encoding import RowEncoder, check_layout
from phicli.dataset.understood import TemplatedRow
from phicli.errors import BadInput
from phicli.quantization.calibration import calibration_tokens
from phicli.text import Conversation, TextCodec, TextTemplate
from phicli.text.agreement import disagreement

LAB = "<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>"
PHI = ("{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
       "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")
CHATML = ("{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + '<|endoftext|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}")


def model(tiny, folder, template, *, begin=False):
    """The built-in tokenizer under a chat template (None: without); begin: it puts <|system|> before a text."""
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.token_to_id("<|system|>"))])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|system|>", "eos_token": "<|endoftext|>"}))
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("template", "found"), [
    (LAB, None),
    (LAB + "\\n", None),
    ("<|system|>\\nBe brief.<|end|>\\n" + LAB, None),  # chat --system sends that
    ("<|user|>\\n{prompt} in {place}?<|end|>\\n<|assistant|>\\n{response}<|end|>", None),
    ("{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>", "a row begins with '' in place of '<|user|>\\n'"),
    ("<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}",
     "would not learn to end an answer, which '<|end|>' does"),
    ("<|user|>\\n{prompt}<|end|>\\n<|assistant|>{response}<|end|>", "an answer follows after"),
    ("<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}\\n<|end|>", "an answer is followed by '\\n<|end|>'"),
    ("{response}<|end|>", "an answer follows after ''"),
])
def test_what_differs_from_the_chat_template_is_said(tiny, template, found):
    said = disagreement(TextCodec(tiny), TextTemplate(template))
    assert said is None if found is None else found in said


def test_the_lab_s_template_is_refused_for_another_model(tiny, tmp_path):
    folder = model(tiny, tmp_path / "m", CHATML)
    settings = EvaluateConfig("tiny", text_template=LAB)
    with pytest.raises(BadInput) as refused:
        check_layout(RowEncoder(folder, settings), force=False)
    assert str(refused.value).startswith("--text-template: the rows would not be laid out as chat lays them out: "
                                         "the model would not learn to end an answer, which '<|endoftext|>' does")
    assert "--force-template" in refused.value.hint
    warnings = []
    check_layout(RowEncoder(folder, settings), force=True, progress=type("P", (), {"warn": warnings.append}))
    assert len(warnings) == 1


@pytest.mark.parametrize("chat", [PHI, "{{ bos_token }}" + PHI, None])
@pytest.mark.parametrize("begin", [True, False])
def test_a_text_begins_once_and_as_chat_does(tiny, tmp_path, chat, begin):
    from transformers import AutoTokenizer

    folder = model(tiny, tmp_path / "m", chat, begin=begin)
    bos = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|system|>")
    encoder = RowEncoder(folder, EvaluateConfig("tiny", text_template=LAB))
    plain = encoder.encode("Kyoto in spring")
    assert plain.ids.count(bos) == begin and (plain.ids[0] == bos) == begin
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = encoder.encode(TemplatedRow({"prompt": "a", "response": "b"}))
    talk = encoder.encode(Conversation.of(*messages))
    if chat:
        known = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=True, return_dict=False)
        assert talk.ids == known
    assert talk.ids[: len(row.ids)] == row.ids or (chat and chat.startswith("{{") and not begin)
    assert talk.ids.count(bos) == (chat.startswith("{{ bos") if chat else begin)
    assert row.ids.count(bos) == (begin and (chat is None or chat.startswith("{{ bos")))
    assert encoder.codec.decode([row.ids[at] for at in row.targets]) == "b"
    written = TextTemplate("<|system|>" + LAB)
    assert encoder.codec.encode_row(written, {"prompt": "a", "response": "b"}).ids.count(bos) == 1


@pytest.mark.parametrize("begin", [True, False])
def test_each_piece_to_calibrate_on_begins_once(tiny, tmp_path, begin):
    folder = model(tiny, tmp_path / "m", PHI, begin=begin)
    shutil.copy(tiny / "config.json", folder / "config.json")
    (tmp_path / "plain.txt").write_text("one two three four\n\n" * 8, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text((json.dumps({"text": "one two three four"}) + "\n") * 8, encoding="utf-8")
    bos = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|system|>")
    for name in ("plain.txt", "rows.jsonl"):  # eight pieces of one length: no token is left over
        tokens = calibration_tokens(folder, calibration(tmp_path / name, 100, 8))
        assert tokens.flatten().tolist().count(bos) == begin * 8


@pytest.mark.parametrize("begin", [True, False])
def test_a_plain_chat_begins_as_a_text_does_and_ends_its_turns(tiny, tmp_path, begin):
    folder = model(tiny, tmp_path / "m", None, begin=begin)
    encoder = RowEncoder(folder, EvaluateConfig("tiny"))
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}]
    text = encoder.codec.render_chat([*messages, *messages[1:]], add_generation_prompt=False)
    turn = "User: a\nAssistant:\nb<|endoftext|>\n"
    assert text == ("<|system|>" if begin else "") + "s\n\n" + turn + turn
    assert encoder.codec.turns.end == "<|endoftext|>"


def test_a_text_template_of_any_characters_becomes_a_chat_template(tiny, tmp_path):
    shutil.copy(tiny / "tokenizer.json", tmp_path / "tokenizer.json")
    settings = EvaluateConfig("tiny", text_template='{{"q"}}: 🙂 é \\t\\\\ {prompt} "a": {response}\'<|end|>')
    encoder = RowEncoder(tmp_path, settings)
    row = encoder.encode(TemplatedRow({"prompt": "x", "response": "y"}))
    talk = encoder.encode(Conversation.of({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}))
    assert (row.ids, row.mask) == (talk.ids, talk.mask)
    assert disagreement(encoder.codec, encoder.template) is None
